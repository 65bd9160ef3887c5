"""What a Config accepts, how it travels, and that the published ones are the published ones."""

import json

import jax
import pytest

from llama_jax.config import (
    Config,
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    YarnScaling,
    published,
)
from llama_jax.model.transformer import init_params

# As their publishers, or the hubs that host them, count them.
PARAMETERS = {
    "llama-7b": 6_738_415_616,
    "llama-13b": 13_015_864_320,
    "llama-30b": 32_528_943_616,
    "llama-65b": 65_285_660_672,
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "code-llama-7b": 6_738_546_688,
    "code-llama-13b": 13_016_028_160,
    "code-llama-34b": 33_743_970_304,
    "code-llama-70b": 68_976_910_336,
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-3.3-70b": 70_553_706_496,
}


def test_every_published_model_has_a_config_and_the_tiny_one_too():
    assert set(published()) == set(PARAMETERS) | {"tiny"}


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_published_model_has_its_published_parameter_count(name):
    config = Config.named(name)
    shapes = jax.eval_shape(lambda key: init_params(key, config), jax.random.key(0))
    assert shapes.size == PARAMETERS[name]


@pytest.mark.parametrize("name", [*PARAMETERS, "tiny"])
def test_a_config_survives_json(name):
    config = Config.named(name)
    assert Config.from_json(json.loads(json.dumps(config.to_json()))) == config


@pytest.mark.parametrize(
    "scaling",
    [LinearScaling(4), YarnScaling(8, 32, 1, True, 1.2, 4096), DynamicScaling(2, 10**6)],
    ids=lambda scaling: type(scaling).__name__,
)
def test_a_scaling_survives_json(config, scaling):
    scaled = config.replace(rope_scaling=scaling)
    assert Config.from_json(json.loads(json.dumps(scaled.to_json()))) == scaled


def test_equal_numbers_make_equal_configs_with_equal_hashes(config):
    other = config.replace(rope_theta=int(config.rope_theta))
    assert other == config
    assert hash(other) == hash(config)


def test_no_field_has_a_default():
    with pytest.raises(TypeError, match="rope_theta"):
        Config(dim=64)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 0}, "dim=0 must be a positive integer"),
        ({"n_layers": 2.0}, "n_layers=2.0 must be a positive integer"),
        ({"vocab_size": -1}, "vocab_size=-1"),
        ({"n_kv_heads": 3}, "n_kv_heads=3 does not divide n_heads=8"),
        ({"head_dim": 7}, "head_dim=7 is odd"),
        ({"norm_eps": 0.0}, "norm_eps=0.0 must be a finite number above 0"),
        ({"rope_theta": float("nan")}, "rope_theta=nan"),
        ({"rope_theta": float("inf")}, "rope_theta=inf"),
        ({"rope_theta": 10**400}, "rope_theta=1000* must be a finite number"),
        ({"rope_theta": "10000"}, "rope_theta='10000'"),
        ({"rope_scaling": 8}, "rope_scaling=8"),
        ({"tie_embeddings": 1}, "tie_embeddings=1 must be True or False"),
        ({"attention_bias": None}, "attention_bias=None must be True or False"),
        ({"mlp_bias": 0}, "mlp_bias=0 must be True or False"),
        (
            {"rope_scaling": DynamicScaling(2, 100), "max_seq_len": 101},
            "max_seq_len=101 must not exceed original_max_seq_len=100 under dynamic NTK",
        ),
    ],
)
def test_a_wrong_value_is_refused_by_name(config, changes, message):
    with pytest.raises(ValueError, match=message):
        config.replace(**changes)


def test_a_size_beyond_any_model_is_refused_and_a_published_one_far_from_it(config):
    most = {"dim": 2**20, "n_layers": 4096, "hidden_dim": 2**24, "vocab_size": 2**26}
    for name, limit in most.items():
        config.replace(**{name: limit})
        with pytest.raises(ValueError, match=f"{name}={limit + 1} must be at most {limit:,}"):
            config.replace(**{name: limit + 1})
        assert all(8 * getattr(one, name) <= limit for one in published().values())


def test_a_wrong_scaling_is_refused_by_name():
    with pytest.raises(ValueError, match=r"factor=0\.5 must be a finite number at least 1"):
        LinearScaling(0.5)
    with pytest.raises(ValueError, match=r"high_freq_factor=1.0 must exceed low_freq_factor=4.0"):
        Llama3Scaling(8, 4, 1, 8192)
    with pytest.raises(ValueError, match=r"beta_fast=1.0 must exceed beta_slow=32.0"):
        YarnScaling(8, 1, 32, True, 1.0, 4096)
    with pytest.raises(ValueError, match="truncate=1 must be True or False"):
        YarnScaling(8, 32, 1, 1, 1.0, 4096)


def test_json_with_a_missing_or_unknown_key_is_refused_by_name(config):
    fields = config.to_json()
    with pytest.raises(ValueError, match="config lacks rope_theta"):
        Config.from_json({k: v for k, v in fields.items() if k != "rope_theta"})
    with pytest.raises(ValueError, match="unknown keys n_experts"):
        Config.from_json({**fields, "n_experts": 8})
    with pytest.raises(ValueError, match=r"longrope.*dynamic.*yarn"):
        Config.from_json({**fields, "rope_scaling": {"type": "longrope", "factor": 4}})
    with pytest.raises(ValueError, match="rope_scaling lacks attention_factor, beta_fast"):
        Config.from_json({**fields, "rope_scaling": {"type": "yarn", "factor": 4}})
    with pytest.raises(ValueError, match="must be a JSON object"):
        Config.from_json([])


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'llama-9b'.*llama-3\.1-8b"):
        Config.named("llama-9b")
