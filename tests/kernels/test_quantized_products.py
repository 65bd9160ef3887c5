"""Products of quantized weights in each platform's form: what the values say of them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax import kernels
from llama_jax.kernels import quantized_blocks, quantized_cpu, quantized_feed_forward, quantized_gpu
from llama_jax.ops.swiglu import swiglu
from llama_jax.weights.fp8 import Fp8
from llama_jax.weights.int4 import Int4
from llama_jax.weights.int8 import Int8
from llama_jax.weights.quantize import ROUNDED

pytestmark = pytest.mark.bits

RNG = np.random.default_rng(0)
INPUTS, OUTPUTS = 512, 256
ARRAY = RNG.normal(size=(INPUTS, OUTPUTS)).astype(np.float32)
MINIMA = RNG.normal(size=(INPUTS // 16, OUTPUTS)).astype(np.float16)
WEIGHTS = {
    "int8": Int8.of(ARRAY),
    "int8 in groups of 64": Int8.of(ARRAY, group=64),
    "int8 in groups of 16 with minima": dataclasses.replace(
        Int8.of(ARRAY, group=16), minimum=MINIMA
    ),
    "int8 with minima": dataclasses.replace(Int8.of(ARRAY), minimum=MINIMA[0]),
    "int4": Int4.of(ARRAY),
    "int4 with minima": dataclasses.replace(Int4.of(ARRAY), minimum=MINIMA[::2]),
    "fp8": Fp8.of(ARRAY),
    "fp8 of 160 inputs": Fp8.of(ARRAY[:160]),
}


@pytest.fixture(params=WEIGHTS)
def weight(request):
    return WEIGHTS[request.param]


def rows_of(count, width):
    return jnp.asarray(RNG.normal(size=(count, width)), jnp.float32)


@pytest.mark.parametrize("rows", [1, 3, quantized_cpu.MANY])
@pytest.mark.parametrize("form", [quantized_cpu, quantized_gpu], ids=["cpu", "default"])
def test_a_form_computes_what_the_weight_does(weight, form, rows):
    x, dense = rows_of(rows, weight.shape[0]), np.asarray(weight.dense())
    found = jax.jit(form.product)(x, weight)
    np.testing.assert_allclose(found, x @ dense, rtol=1e-4, atol=2e-4)
    y = rows_of(rows, OUTPUTS)
    found = jax.jit(form.product_transposed)(y, weight)
    np.testing.assert_allclose(found, y @ dense.T, rtol=1e-4, atol=2e-4)


def test_linear_takes_any_batch_and_gives_its_dtype(weight):
    x = rows_of(6, weight.shape[0]).reshape(2, 3, -1).astype(jnp.bfloat16)
    found = kernels.linear(x, weight)
    assert (found.shape, found.dtype) == ((2, 3, OUTPUTS), jnp.bfloat16)
    exact = x.astype(jnp.float32) @ weight.dense()
    np.testing.assert_allclose(found.astype(jnp.float32), exact, rtol=1e-2, atol=5e-2)
    assert kernels.linear_transposed(found, weight).shape == x.shape


def test_the_gradient_of_the_activations_is_that_of_the_dense_product(weight):
    x, dense = rows_of(3, weight.shape[0]), weight.dense()
    found = jax.grad(lambda x: jnp.square(kernels.linear(x, weight)).sum())(x)
    wanted = jax.grad(lambda x: jnp.square(x @ dense).sum())(x)
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("rows", [1, 2, 64])
@pytest.mark.parametrize("kind", ["int8", "int8 in groups", "int4", "fp8"])
def test_a_step_in_a_loop_holds_no_decoded_weight(kind, rows):
    """Several weights in one program, as in a model: XLA would decode each before the product."""
    in_groups = functools.partial(Int8.of, group=32)
    make = {"int8": Int8.of, "int8 in groups": in_groups, "int4": Int4.of, "fp8": Fp8.of}[kind]
    shape = jax.ShapeDtypeStruct((1024, 1024), jnp.float32)
    weights = [jax.eval_shape(make, shape)] * 4

    def loop(x, weights):
        def step(_, x):
            return functools.reduce(lambda x, w: kernels.linear(x, w) * 0.1, weights, x)

        return jax.lax.fori_loop(0, 9, step, x)

    x = jax.ShapeDtypeStruct((rows, 1024), jnp.float32)
    options = kernels.COMPILER_OPTIONS
    memory = jax.jit(loop).lower(x, weights).compile(options).memory_analysis()
    a_block = 4 * quantized_blocks.INPUTS * 1024
    assert memory.temp_size_in_bytes < 2 * a_block + 8 * rows * 4096


@pytest.mark.parametrize("door", [kernels.linear, kernels.linear_transposed])
@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_more_weights_need_no_more_memory_for_a_prompt(kind, door):
    """XLA would make the zeros that every loop begins with when the program starts."""
    rows, width = 2 * quantized_cpu.MANY, 512
    weight = jax.eval_shape(ROUNDED[kind], jax.ShapeDtypeStruct((width, width), jnp.float32))

    def temporaries(weights):
        def step(x, weights):
            return functools.reduce(lambda x, w: jnp.tanh(door(x, w)), weights, x)

        x = jax.ShapeDtypeStruct((rows, width), jnp.float32)
        lowered = jax.jit(step).lower(x, [weight] * weights)
        return lowered.compile(kernels.COMPILER_OPTIONS).memory_analysis().temp_size_in_bytes

    assert temporaries(6) < temporaries(2) + 4 * rows * width


def three_of(kinds, dim=256, hidden=512):
    """w1, w3 and w2 of a feed-forward layer, each of the kind named."""
    shapes = [(dim, hidden), (dim, hidden), (hidden, dim)]
    arrays = [RNG.normal(size=shape).astype(np.float32) * shape[0] ** -0.5 for shape in shapes]
    return [ROUNDED[kind](array) for kind, array in zip(kinds, arrays, strict=True)]


MIXED = ("int4", "int8", "fp8"), ("int8_channel", "fp8", "int4"), ("int4", "int4", "int8_channel")
LAYERS = [*((kind,) * 3 for kind in ("int8", "int8_channel", "int4", "fp8")), *MIXED]


@pytest.mark.parametrize("kinds", LAYERS, ids=" ".join)
@pytest.mark.parametrize("rows", [3, quantized_cpu.MANY + 1])
def test_a_feed_forward_layer_is_its_three_products(kinds, rows):
    weights, x = three_of(kinds), rows_of(rows, 256).reshape(1, rows, 256)
    assert quantized_feed_forward.width_of_block(*weights) == 256
    dense = [np.asarray(w.dense()) for w in weights]

    def exact(x):
        return swiglu(x @ dense[0], x @ dense[1]) @ dense[2]

    np.testing.assert_allclose(kernels.gated(x, *weights), exact(x), rtol=1e-4, atol=1e-4)
    found, wanted = (
        jax.grad(lambda x, of=of: jnp.square(of(x)).sum())(x)
        for of in (lambda x: kernels.gated(x, *weights), exact)
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-2)


def test_a_feed_forward_layer_without_a_fitting_block_is_still_its_products():
    weights = three_of(("int8",) * 3, hidden=160)
    with_minimum = dataclasses.replace(
        three_of(("int8_channel",) * 3)[0], minimum=jnp.ones(512, jnp.float32)
    )
    assert quantized_feed_forward.width_of_block(*weights) == 0
    assert quantized_feed_forward.width_of_block(with_minimum, *three_of(("int8",) * 3)[1:]) == 0
    x = rows_of(quantized_cpu.MANY, 256)
    dense = [np.asarray(w.dense()) for w in weights]
    exact = swiglu(x @ dense[0], x @ dense[1]) @ dense[2]
    np.testing.assert_allclose(kernels.gated(x, *weights), exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["int8", "int8_channel", "int4", "fp8"])
def test_a_feed_forward_layer_of_a_prompt_holds_no_hidden_activations(kind):
    rows, dim, hidden = 2 * quantized_cpu.MANY, 256, 4096
    shapes = [(dim, hidden), (dim, hidden), (hidden, dim)]
    shaped = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    weights = [jax.eval_shape(ROUNDED[kind], shape) for shape in shaped]
    x = jax.ShapeDtypeStruct((rows, dim), jnp.float32)
    lowered = jax.jit(kernels.gated).lower(x, *weights)
    memory = lowered.compile(kernels.COMPILER_OPTIONS).memory_analysis()
    assert memory.temp_size_in_bytes < 4 * rows * hidden
