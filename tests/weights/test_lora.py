"""A weight with an adapter passes every door that a weight passes, whatever its base is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import check_same, edit_manifest
from toy_weight import Scaled

import llama_jax
from llama_jax.checkpoint import shapes
from llama_jax.kernels import linear
from llama_jax.sharding.adapters import without_adapters
from llama_jax.weights.lora import Adapter, Lora, scale_of
from llama_jax.weights.params import nested, weight_at
from llama_jax.weights.table import EMBEDDING, weight_table
from llama_jax.weights.weight import KINDS, register_weight

RANK = 4
MATRICES = ("wq", "wk", "wv", "wo", "w1", "w2", "w3")


@pytest.fixture(autouse=True, scope="module")
def toy_kind():
    register_weight(Scaled)
    yield
    del KINDS[Scaled.kind]


def adapted(base, seed, rank=RANK):
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(base.shape[0], rank), scale=0.2).astype(np.float32)
    b = rng.normal(size=(rank, base.shape[1]), scale=0.2).astype(np.float32)
    return Lora.of(base, Adapter(jnp.asarray(a), jnp.asarray(b), scale_of(rank, 6.0, False)))


@pytest.fixture(scope="module", params=["arrays", "values"])
def models(request):
    """A model with adapters on every matrix of its layers, and the same model as arrays."""
    config = llama_jax.Config.named("tiny").replace(
        dim=64, n_heads=8, n_kv_heads=4, head_dim=8, hidden_dim=128, n_layers=1
    )
    params = llama_jax.init_params(jax.random.key(0), config)
    values, dense = {}, {}
    for seed, path in enumerate(weight_table(config)):
        weight = weight_at(params.weights, path)
        if path[-1] in MATRICES:
            weight = adapted(Scaled.of(weight) if request.param == "values" else weight, seed)
        values[path] = weight
        dense[path] = weight.dense() if isinstance(weight, Lora) else weight
    return params.replace(weights=nested(values)), params.replace(weights=nested(dense))


def test_each_product_is_that_of_the_dense_weight():
    rng = np.random.default_rng(0)
    array = jnp.asarray(rng.normal(size=(24, 16)).astype(np.float32))
    x, y = (jnp.asarray(rng.normal(size=(3, n)).astype(np.float32)) for n in (24, 16))
    for base in (array, Scaled.of(array)):
        weight = adapted(base, 1)
        below = base.dense() if isinstance(base, Scaled) else base
        exact = np.float64(below) + np.float64(weight.a) @ np.float64(weight.b) * 1.5
        np.testing.assert_allclose(weight.dense(), exact, atol=1e-5)
        np.testing.assert_allclose(weight.matmul(x), x @ exact, atol=1e-4)
        np.testing.assert_allclose(linear(x, weight), x @ exact, atol=1e-4)
        np.testing.assert_allclose(weight.matmul_transposed(y), y @ exact.T, atol=1e-4)
        np.testing.assert_allclose(weight.rows(jnp.array([[3, 0]])), exact[[[3, 0]]], atol=1e-5)
        assert (weight.shape, weight.dtype) == ((24, 16), jnp.float32)
        assert weight.matmul(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_rank_stabilised_scales_divide_by_the_root_of_the_rank():
    assert (scale_of(16, 32.0, False), scale_of(16, 32.0, True)) == (2.0, 8.0)


def test_an_adapter_of_another_shape_is_refused():
    weight = adapted(jnp.zeros((4, 6)), 0)
    with pytest.raises(ValueError, match=r"of a weight of shape \[4, 6\], and this one has \[6, 4"):
        Lora.of(jnp.zeros((6, 4)), weight.adapter)


def test_a_model_with_adapters_computes_what_its_arrays_compute(models):
    values, dense = models
    text, positions = jnp.array([[1, 2, 3, 4]]), jnp.arange(4)[None]
    ours, _ = jax.jit(llama_jax.forward)(values, text, positions)
    wanted, _ = jax.jit(llama_jax.forward)(dense, text, positions)
    np.testing.assert_allclose(ours, wanted, atol=2e-5)
    assert values.size == dense.size


def test_the_bytes_of_a_model_count_its_adapters(models):
    values, _ = models
    added = sum(
        RANK * sum(row.shape) * 4
        for path, row in weight_table(values.config).items()
        if path[-1] in MATRICES
    )
    assert values.nbytes - without_adapters(values).nbytes == added


def test_a_mesh_cuts_an_adapter_as_it_cuts_its_base(models):
    values, _ = models
    sharded = llama_jax.shard_params(values, llama_jax.make_mesh(fsdp=2, tensor=2))
    wq = sharded.weights["layers_0"]["attention"]["wq"]
    wo = sharded.weights["layers_0"]["attention"]["wo"]
    cut = [part.addressable_shards[0].data.shape for part in (wq.a, wq.b, wo.a, wo.b)]
    assert cut == [(32, RANK), (RANK, 32), (32, RANK), (RANK, 32)]
    assert (sharded.size, sharded.nbytes) == (values.size, values.nbytes)


@pytest.mark.slow
def test_a_model_with_adapters_computes_the_same_on_a_mesh(models):
    values, _ = models
    sharded = llama_jax.shard_params(values, llama_jax.make_mesh(fsdp=2, tensor=2))
    text, at = jnp.array([[1, 2, 3, 4]] * 2), jnp.array([[0, 1, 2, 3]] * 2)
    ours, wanted = (jax.jit(llama_jax.forward)(each, text, at)[0] for each in (sharded, values))
    np.testing.assert_allclose(ours, wanted, atol=2e-5)


@pytest.mark.parametrize("sizes", [{}, {"fsdp": 2, "tensor": 2}], ids=["one device", "a mesh"])
def test_a_checkpoint_with_adapters_comes_back(models, tmp_path, sizes):
    values, _ = models
    mesh = llama_jax.make_mesh(**sizes) if sizes else None
    llama_jax.save(llama_jax.shard_params(values, mesh) if mesh else values, tmp_path / "model")
    loaded = llama_jax.load(tmp_path / "model", mesh=mesh)
    check_same(loaded, values)
    half = llama_jax.load(tmp_path / "model", mesh=mesh, dtype="bfloat16")
    wq, base = half.weights["layers_0"]["attention"]["wq"], "values"
    assert (wq.dtype, wq.a.dtype, wq.b.dtype) == (jnp.bfloat16, jnp.float32, jnp.float32)
    base = values.weights["layers_0"]["attention"]["wq"].base
    assert jax.tree.leaves(wq.base)[0].dtype == (
        jnp.int8 if isinstance(base, Scaled) else jnp.bfloat16
    )
    for dtype, params in (("float32", loaded), ("bfloat16", half)):
        expected = shapes(tmp_path / "model", mesh=mesh, dtype=dtype)
        assert jax.tree.structure(expected.weights) == jax.tree.structure(params.weights)
        for shape, leaf in zip(
            jax.tree.leaves(expected.weights), jax.tree.leaves(params.weights), strict=True
        ):
            assert (shape.shape, shape.dtype, shape.sharding) == (
                leaf.shape,
                leaf.dtype,
                leaf.sharding,
            )


def test_a_tied_embedding_may_have_an_adapter():
    config = llama_jax.Config.named("tiny").replace(tie_embeddings=True, n_layers=1)
    tied = llama_jax.init_params(jax.random.key(0), config)
    table = adapted(weight_at(tied.weights, EMBEDDING), 0)
    text, at = jnp.array([[1, 2, 3, 4]]), jnp.arange(4)[None]
    ours, wanted = (
        jax.jit(llama_jax.forward)(tied.with_weight(EMBEDDING, weight), text, at)[0]
        for weight in (table, table.dense())
    )
    np.testing.assert_allclose(ours, wanted, atol=2e-4)


def test_constants_that_are_damaged_name_the_weight(models, tmp_path):
    values, _ = models
    llama_jax.save(values, tmp_path / "model")
    edit_manifest(tmp_path / "model", lambda text: text.replace("1.5", '"much"', 1))
    with pytest.raises(ValueError, match=r"wq is no whole weight of kind lora: scale='much' must"):
        llama_jax.load(tmp_path / "model")
