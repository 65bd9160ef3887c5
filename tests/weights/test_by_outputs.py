"""Weights that lie by their outputs: the same numbers, the same model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from llama_jax import generate, make_mesh
from llama_jax.generation.few_rows import for_few_rows
from llama_jax.kernels import linear, linear_transposed
from llama_jax.weights.by_outputs import ByOutputs, by_outputs
from llama_jax.weights.params import Params, weight_at
from llama_jax.weights.quantize import quantize
from llama_jax.weights.table import EMBEDDING, weight_table
from llama_jax.weights.weight import map_parts, part_spec


@pytest.fixture
def own(params):
    """A copy, which a test may give away."""
    return jax.tree.map(jnp.copy, params)


def draw(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize("rows", [1, 2, 16, 127, 128])
def test_a_cpus_products_equal_the_plain_ones(rows):
    """A matrix large enough for the CPU's own form."""
    x, w = draw(rows, 512, seed=1), draw(512, 640)
    plain = jnp.matmul(x, w, precision="highest")
    np.testing.assert_allclose(linear(x, ByOutputs(w.T)), plain, atol=1e-4)
    np.testing.assert_allclose(linear_transposed(x, w.T), plain, atol=1e-4)


@pytest.mark.parametrize("rows", [1, 2, 16, 127, 128])
def test_so_do_those_of_bfloat16_summed_in_float32(rows):
    x, w = draw(rows, 512, seed=1).astype("bfloat16"), draw(512, 640).astype("bfloat16")
    exact = jnp.matmul(x.astype("float32"), w.astype("float32"), precision="highest")
    found = linear(x, ByOutputs(w.T))
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype("float32"), exact, rtol=2**-8, atol=1e-4)


@pytest.mark.parametrize(("dtype", "name"), [("float32", "f32"), ("bfloat16", "bf16")])
def test_a_few_rows_meet_the_weight_as_the_first_matrix(dtype, name):
    """XLA packs the second one for every call."""

    def first_shape(rows):
        x, w = draw(rows, 512).astype(dtype), draw(640, 512).astype(dtype)
        text = jax.jit(linear_transposed).lower(x, w).as_text()
        (product,) = [line for line in text.splitlines() if "dot_general" in line]
        return product.split(": (tensor<")[1].split(">")[0]

    assert first_shape(2) == first_shape(127) == f"640x512x{name}"
    assert first_shape(128) == f"128x512x{name}"


def test_its_gradient_is_the_plain_products():
    x, w = draw(4, 512), draw(640, 512)
    found = jax.grad(lambda x: jnp.sum(jnp.sin(linear_transposed(x, w))))(x)
    expected = jax.grad(lambda x: jnp.sum(jnp.sin(x @ w.T)))(x)
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_a_weight_is_the_array_that_it_was_made_from():
    w = draw(6, 4)
    value = ByOutputs(w.T)
    assert (value.shape, value.dtype) == ((6, 4), w.dtype)
    np.testing.assert_array_equal(value.dense(), w)
    np.testing.assert_array_equal(value.rows(jnp.array([5, 0])), w[jnp.array([5, 0])])
    x = draw(3, 4)
    np.testing.assert_allclose(value.matmul_transposed(x), x @ w.T, atol=1e-6)


def test_a_mesh_cuts_it_as_the_array():
    mesh = make_mesh(tensor=2)
    value = ByOutputs(draw(8, 6).T)
    spec = jax.sharding.PartitionSpec("fsdp", "tensor")
    cut = map_parts(
        value, lambda part, axes: jax.device_put(part, NamedSharding(mesh, part_spec(axes, spec)))
    )
    assert cut.values.sharding.spec == jax.sharding.PartitionSpec("tensor", "fsdp")
    np.testing.assert_array_equal(cut.dense(), value.dense())


def test_a_model_by_outputs_writes_the_same_and_takes_the_weights_over(params, own):
    prompts, greedy = [[1, 2, 3], [4, 5], [6]], {"temperature": 0, "max_new_tokens": 8}
    turned = by_outputs(own)
    assert [c.tokens for c in generate(turned, prompts, **greedy)] == [
        c.tokens for c in generate(params, prompts, **greedy)
    ]
    for path in weight_table(params.config):
        before, after = weight_at(own.weights, path), weight_at(turned.weights, path)
        is_matrix = before.ndim == 2 and path != EMBEDDING
        assert isinstance(after, ByOutputs) == is_matrix == before.is_deleted()


def test_what_is_no_array_stays(own):
    quantized = quantize(own, "int8")
    after = by_outputs(quantized)
    assert jax.tree.structure(after) == jax.tree.structure(quantized)


@pytest.mark.parametrize(
    ("dtype", "turns"), [("float32", True), ("bfloat16", True), ("float16", False)]
)
def test_a_cpu_turns_what_it_multiplies_faster_so(own, dtype, turns):
    params = jax.tree.map(lambda w: w.astype(dtype), own)
    after = for_few_rows(params)
    assert isinstance(after, Params)
    assert isinstance(after.weights["layers_0"]["attention"]["wq"], ByOutputs) == turns
    assert turns or after is params
