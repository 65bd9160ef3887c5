"""Quantized weights written as compressed-tensors, and read back number by number."""

import json

import jax
import numpy as np
import pytest
from helpers import config_of

import llama_jax
from llama_jax.checkpoint.export import export
from llama_jax.checkpoint.reading import open_checkpoint
from llama_jax.weights.int4 import Int4
from llama_jax.weights.int8 import Int8
from llama_jax.weights.params import nested, weight_at
from llama_jax.weights.table import OUTPUT, weight_table
from llama_jax.weights.weight import is_value

CONFIG = config_of(dim=64, n_heads=4, n_kv_heads=2, head_dim=16, hidden_dim=96, n_layers=1)
WQ, WO, W2 = (
    ("layers_0", *at) for at in (("attention", "wq"), ("attention", "wo"), ("feed_forward", "w2"))
)


@pytest.fixture(scope="module")
def params():
    return llama_jax.init_params(jax.random.key(0), CONFIG)


def exported(folder, params, **how):
    llama_jax.save(params, folder / "native")
    done = export(folder / "native", folder / "hf", format="hf", **how)
    said = json.loads((folder / "hf/config.json").read_text()).get("quantization_config")
    return open_checkpoint(folder / "hf").tensors, said, done


def with_weights(params, changed):
    weights = {path: weight_at(params.weights, path) for path in weight_table(params.config)}
    return params.replace(weights=nested(weights | changed))


@pytest.mark.parametrize("kind", ["int8", "int4", "fp8", "int8_dynamic"])
def test_every_kind_is_read_back_number_by_number(tmp_path, params, kind):
    small = llama_jax.quantize(params, kind)
    found, said, done = exported(tmp_path, small)
    for path in weight_table(CONFIG):
        one, weight = found[path], weight_at(small.weights, path)
        want = np.asarray(weight.dense() if is_value(weight) else weight)
        np.testing.assert_array_equal(one[...], want, str(path))
        assert is_value(one) == (is_value(weight) and path != OUTPUT)
    (group,) = said["config_groups"].values()
    assert (group["targets"], said["ignore"]) == (["Linear"], ["lm_head"])
    assert (group["input_activations"] is not None) == (kind == "int8_dynamic")
    assert any("lm_head is written as float32" in note for note in done.notes)


def test_each_kind_of_a_mixed_model_names_its_matrices(tmp_path, params):
    rule = {"wq": "int4", "wk": "int8"}
    small = llama_jax.quantize(params, lambda name: rule.get(name.split(".")[-1]))
    found, said, _ = exported(tmp_path, small)
    targets = [group["targets"] for group in said["config_groups"].values()]
    assert targets == [[f"model.layers.0.self_attn.{name}_proj"] for name in "qk"]
    assert "model.layers.0.mlp.up_proj" in said["ignore"]
    assert sum(map(is_value, found.values())) == 2


def test_groups_and_whole_zeros_are_kept_and_other_minima_become_arrays(tmp_path, params):
    rng = np.random.default_rng(0)
    scale = rng.uniform(0.01, 0.1, (2, 64)).astype(np.float16)
    zeros = rng.integers(0, 16, scale.shape)
    integers = rng.integers(0, 16, (64, 64)).astype(np.uint8)
    whole = Int4.of_integers(integers, scale, -zeros * scale.astype(np.float32))
    free = Int4.of_integers(integers, scale, rng.normal(size=scale.shape).astype(np.float32))
    groups = Int8.of_integers(
        rng.integers(-128, 128, (96, 64)).astype(np.int8), np.repeat(scale, 3, 0)
    )
    found, said, done = exported(tmp_path, with_weights(params, {WQ: whole, WO: free, W2: groups}))
    for path, weight in ((WQ, whole), (WO, free), (W2, groups)):
        np.testing.assert_array_equal(found[path][...], np.asarray(weight.dense()), str(path))
    assert [is_value(found[path]) for path in (WQ, WO, W2)] == [True, False, True]
    sizes = [group["weights"]["group_size"] for group in said["config_groups"].values()]
    symmetric = [group["weights"]["symmetric"] for group in said["config_groups"].values()]
    assert (sizes, symmetric) == ([32, 16], [False, True])
    assert any("1 quantized matrices are written as arrays" in note for note in done.notes)


def test_with_a_dtype_and_of_a_plain_model_all_are_arrays(tmp_path, params):
    found, said, done = exported(tmp_path, llama_jax.quantize(params, "int8"), dtype="bfloat16")
    assert said is None
    assert done.dtypes == ("bfloat16",)
    assert not any(map(is_value, found.values()))
    (tmp_path / "plain").mkdir()
    assert exported(tmp_path / "plain", params)[1] is None
