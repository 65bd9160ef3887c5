"""Every mesh gives what one device gives: logits, tokens, and what is saved."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import GOLDEN

import llama_jax
from llama_jax.checkpoint import shapes
from llama_jax.completions import generate
from llama_jax.config import Config
from llama_jax.generation.score import score
from llama_jax.generation.settings import SamplingSettings
from llama_jax.model.memory import memory
from llama_jax.model.transformer import forward, init_params
from llama_jax.sharding.arrays import mesh_of, shard_params, weight_shardings
from llama_jax.sharding.mesh import make_mesh, mesh_for

SHAPES = [
    {"data": data, "fsdp": fsdp, "tensor": tensor}
    for data, fsdp, tensor in itertools.product((1, 2, 4, 8), repeat=3)
    if data * fsdp * tensor <= 8
]
WHOLE = [shape for shape in SHAPES if math.prod(shape.values()) == 8]
SOME = [{"tensor": 8}, {"data": 2, "fsdp": 2, "tensor": 2}]
SETTINGS = [
    SamplingSettings(max_new_tokens=20, temperature=0.0),
    SamplingSettings(max_new_tokens=20, temperature=1.0, seed=1),
    SamplingSettings(max_new_tokens=20, temperature=1.0, top_p=0.8, seed=2),
    SamplingSettings(max_new_tokens=20, temperature=1.0, top_k=5, seed=3),
    SamplingSettings(max_new_tokens=20, temperature=1.0, top_k=9, min_p=0.05, top_p=0.9, seed=4),
]
jitted = jax.jit(forward)


@functools.cache
def golden(folder):
    return llama_jax.load(folder, dtype="float32")


@functools.cache
def written(folder):
    """What one device writes."""
    params = golden(folder)
    return generate(params, prompts_of(params.config), SETTINGS)


def prompts_of(config):
    rng = np.random.default_rng(0)
    return [rng.integers(1, config.vocab_size, n).tolist() for n in (1, 5, 9, 3, 16)]


def refused(config, shape):
    """Whether the model has too few heads to be cut so."""
    tensor = shape.get("tensor", 1)
    return config.n_heads % tensor != 0


def check_logits(folder, shape):
    params = golden(folder)
    with np.load(folder / "reference.npz") as file:
        expected, tokens, stride = file["logits"], file["tokens"], int(file["logits_stride"])
    sharded = llama_jax.load(folder, mesh=make_mesh(**shape), dtype="float32")
    positions = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
    logits, _ = jitted(sharded, tokens, positions)
    assert logits.shape == (*tokens.shape, params.config.vocab_size)
    np.testing.assert_allclose(logits[:, ::stride], expected, atol=2e-4, rtol=0)


def check_tokens(folder, shape):
    params = golden(folder)
    sharded = shard_params(params, make_mesh(**shape))
    found = generate(sharded, prompts_of(params.config), SETTINGS)
    assert [c.tokens for c in found] == [c.tokens for c in written(folder)]


@pytest.mark.parametrize("shape", SOME, ids=str)
def test_a_mesh_gives_metas_logits_and_one_devices_tokens(shape):
    check_logits(GOLDEN / "meta" / "llama2-gqa", shape)
    check_tokens(GOLDEN / "meta" / "llama2-gqa", shape)


@pytest.fixture
def forgotten():
    """The programs of all shapes are more than a process can map."""
    yield
    jax.clear_caches()


@pytest.mark.slow
@pytest.mark.usefixtures("forgotten")
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        *itertools.product(("llama3.1",), SHAPES),
        *itertools.product(("llama1", "llama2-gqa", "llama3"), WHOLE),
    ],
    ids=str,
)
def test_every_mesh_gives_metas_logits_and_one_devices_tokens(name, shape):
    folder = GOLDEN / "meta" / name
    config = golden(folder).config
    if refused(config, shape):
        with pytest.raises(ValueError, match=f"does not divide n_heads={config.n_heads}"):
            shard_params(golden(folder), make_mesh(**shape))
        return
    check_logits(folder, shape)
    check_tokens(folder, shape)


@pytest.mark.usefixtures("forgotten")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        *itertools.product(("stories260K-meta",), SOME),
        *itertools.product(("tinystories656K-hf",), WHOLE),
    ],
    ids=str,
)
def test_real_models_write_on_every_mesh_what_they_write_on_one_device(shared, name, shape):
    check_tokens(shared / "models" / name, shape)


@pytest.mark.parametrize("shape", [{"tensor": 6}, {"fsdp": 2, "tensor": 3}], ids=str)
def test_biases_lie_with_what_they_are_added_to(shape):
    check_logits(GOLDEN / "hf" / "bias", shape)


def test_a_tied_model_is_cut_at_both_ends():
    check_logits(GOLDEN / "hf" / "llama3.2-tied", {"fsdp": 2, "tensor": 4})


# What does not divide


UNEVEN = Config.named("tiny").replace(vocab_size=250, hidden_dim=190, mlp_bias=True)


@functools.cache
def uneven(tied=False):
    return init_params(jax.random.key(0), UNEVEN.replace(tie_embeddings=tied))


@pytest.mark.parametrize("tied", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_vocabulary_and_a_width_are_padded_and_nobody_sees_it(tied):
    params, prompts = uneven(tied), [[1, 2], [249]]
    sharded = shard_params(params, make_mesh(tensor=4))
    assert sharded.weights["tok_embeddings"]["weight"].shape == (252, UNEVEN.dim)
    assert sharded.weights["layers_0"]["feed_forward"]["w2"].shape == (192, UNEVEN.dim)
    assert (sharded.size, sharded.nbytes) == (params.size, params.nbytes)
    tokens = np.array([[1, 249, 3]])
    positions = np.arange(3)[None]
    single, _ = jitted(params, tokens, positions)
    found, _ = jitted(sharded, tokens, positions)
    assert found.shape == single.shape == (1, 3, 250)
    np.testing.assert_allclose(found, single, atol=2e-6)
    if not tied:
        settings = {"max_new_tokens": 8, "temperature": [0.0, 5.0], "logprobs": 3, "seed": 1}
        several = generate(sharded, prompts, **settings), generate(params, prompts, **settings)
        one, other = (
            [(c.tokens, [list(entry.top) for entry in c.logprobs]) for c in s] for s in several
        )
        assert one == other


@pytest.mark.parametrize("config", [UNEVEN, Config.named("tiny")], ids=["uneven", "even"])
def test_what_is_saved_from_a_mesh_is_the_model(tmp_path, config):
    params = init_params(jax.random.key(1), config)
    sharded = shard_params(params, make_mesh(tensor=8))  # pads, and shares 4 heads among 8
    llama_jax.save(sharded, tmp_path / "model")
    alone = llama_jax.load(tmp_path / "model", dtype="float32")
    assert alone.config == config
    jax.tree.map(np.testing.assert_array_equal, alone.weights, params.weights)


@pytest.mark.parametrize("shape", [{"tensor": 8}, {"fsdp": 2, "tensor": 4}], ids=str)
@pytest.mark.parametrize("native", [True, False], ids=["native", "meta"])
def test_load_puts_each_part_where_shard_params_does(tmp_path, shape, native):
    if native:
        llama_jax.save(uneven(), tmp_path / "model")
        path, params = tmp_path / "model", uneven()
    else:
        path = GOLDEN / "meta" / "llama2-gqa"
        params = golden(path)
    loaded = llama_jax.load(path, mesh=make_mesh(**shape), dtype="float32")
    placed = shard_params(params, make_mesh(**shape))
    assert mesh_of(loaded) == mesh_of(placed)
    told = shapes(path, mesh=make_mesh(**shape), dtype="float32")
    leaves = map(jax.tree.leaves, (loaded, placed, told))
    for one, two, three in zip(*leaves, strict=True):
        assert one.sharding == two.sharding == three.sharding
        assert one.shape == three.shape
        np.testing.assert_array_equal(one, two)


def test_a_model_moves_from_mesh_to_mesh_and_back():
    params = uneven()
    moved = params
    for shape in ({"tensor": 8}, {"tensor": 4, "fsdp": 2}, {"data": 8}, {}):
        moved = shard_params(moved, make_mesh(**shape))
    jax.tree.map(np.testing.assert_array_equal, moved.weights, params.weights)


def test_devices_that_share_a_head_hold_it_whole_and_its_cache_once_each(params, config):
    sharded = shard_params(params, make_mesh(tensor=8))
    assert dict(mesh_of(sharded).shape) == {"data": 1, "fsdp": 1, "tensor": 4, "copies": 2}
    wk = sharded.weights["layers_0"]["attention"]["wk"]
    assert wk.shape == (config.dim, config.n_kv_heads * config.head_dim), "the model's own shape"
    held = [shard.data for shard in wk.addressable_shards]
    assert {part.shape for part in held} == {(config.dim, config.head_dim)}
    for first, second in zip(held[::2], held[1::2], strict=True):
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("rows", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_a_batch_of_any_size_runs_on_any_mesh(params, rows):
    sharded = shard_params(params, make_mesh(data=3, fsdp=2))
    prompts = [[7, 8, 9]] * rows
    settings = {"max_new_tokens": 4, "temperature": 1.0, "seed": list(range(rows))}
    assert generate(sharded, prompts, **settings) == generate(params, prompts, **settings)
    assert [s.tokens for s in score(sharded, prompts)] == prompts
    alone = [s.logprobs for s in score(params, prompts)]
    np.testing.assert_allclose([s.logprobs for s in score(sharded, prompts)], alone, atol=1e-5)


def test_forward_takes_a_batch_that_the_mesh_does_not_divide(params):
    sharded = shard_params(params, make_mesh(data=2, fsdp=2, tensor=2))
    tokens = jnp.arange(15).reshape(3, 5)
    positions = jnp.broadcast_to(jnp.arange(5), (3, 5))
    found, _ = jitted(sharded, tokens, positions)
    np.testing.assert_allclose(found, jitted(params, tokens, positions)[0], atol=2e-6)


def test_forward_needs_no_context_and_minds_none(params):
    sharded, tokens = shard_params(params, make_mesh(tensor=8)), jnp.zeros((1, 2), jnp.int32)
    expected, _ = jitted(params, tokens, tokens)
    found, _ = jitted(sharded, tokens, tokens)
    np.testing.assert_allclose(found, expected, atol=2e-6)
    with jax.set_mesh(make_mesh(tensor=8)):
        found, _ = jitted(sharded, tokens, tokens)
    np.testing.assert_allclose(found, expected, atol=2e-6)


@pytest.mark.parametrize(
    ("changes", "shape", "said"),
    [
        ({}, {"tensor": 3}, "tensor=3 does not divide n_heads=8; use a divisor"),
        ({}, {"fsdp": 3}, "fsdp=3 does not divide dim=64; use a divisor"),
        (
            {"n_heads": 12, "n_kv_heads": 4, "hidden_dim": 192},
            {"tensor": 6},
            "tensor=6 neither divides n_kv_heads=4 nor is a multiple of it; use one that does",
        ),
    ],
)
def test_what_cannot_be_cut_is_refused_with_the_way_out(config, changes, shape, said):
    config = config.replace(**changes)
    with pytest.raises(ValueError, match=said):
        mesh_for(config, make_mesh(**shape))
    with pytest.raises(ValueError, match=said):
        memory(config, dtype="float32", batch=1, context=1, **shape)


def test_a_mesh_of_somebody_elses_is_refused(config):
    foreign = jax.make_mesh((2,), ("x",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    with pytest.raises(ValueError, match=r"axes \('x',\); make it with make_mesh"):
        weight_shardings(config, foreign)
    explicit = (jax.sharding.AxisType.Explicit,) * 3
    explicit = jax.make_mesh(
        (1, 1, 2), ("data", "fsdp", "tensor"), explicit, devices=jax.devices()[:2]
    )
    with pytest.raises(ValueError, match="not Auto; make it with make_mesh"):
        weight_shardings(config, explicit)


def test_devices_that_are_no_mesh_are_refused_with_the_way_out(params, tmp_path):
    llama_jax.save(params, tmp_path / "model")
    for dtype in ("float32", None):
        for path in (tmp_path / "model", GOLDEN / "meta" / "llama2-gqa"):
            for function in (llama_jax.load, shapes):
                with pytest.raises(ValueError, match=r"mesh=\[CpuDevice.* is no mesh; make one"):
                    function(path, mesh=jax.devices(), dtype=dtype)
    with pytest.raises(ValueError, match="mesh=2 is no mesh"):
        shard_params(params, 2)


@pytest.mark.parametrize("config", [UNEVEN, Config.named("tiny")], ids=["uneven", "even"])
def test_memory_counts_the_bytes_that_are_held(config):
    shape = {"fsdp": 1, "tensor": 8}
    sharded = shard_params(init_params(jax.random.key(0), config), make_mesh(**shape))
    held = sum(leaf.addressable_shards[3].data.nbytes for leaf in jax.tree.leaves(sharded.weights))
    assert memory(config, dtype="float32", batch=1, context=1, **shape).weights_per_device == held
