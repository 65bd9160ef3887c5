"""Quantized weights: what they stand for, and that they pass every door of the protocol."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import llama_jax
from llama_jax.sharding.arrays import put_weight
from llama_jax.weights.fp8 import Fp8
from llama_jax.weights.int4 import Int4, packed
from llama_jax.weights.int8 import Int8
from llama_jax.weights.int8_dynamic import Int8Dynamic
from llama_jax.weights.weight import map_parts, stored_bytes

SHAPE = (128, 48)
RNG = np.random.default_rng(0)
ARRAY = RNG.normal(size=SHAPE).astype(np.float32)
KINDS = {
    "int8": Int8.of(ARRAY),
    "int8 in groups": Int8.of(ARRAY, group=32),
    "int8 with minima": Int8.of_integers(
        RNG.integers(-128, 128, SHAPE, np.int8),
        RNG.uniform(0.01, 0.02, (8, 48)).astype(np.float16),
        RNG.normal(size=(8, 48)).astype(np.float16),
    ),
    "int4": Int4.of(ARRAY),
    "int4 with minima": Int4.of_integers(
        RNG.integers(0, 16, SHAPE, np.uint8),
        RNG.uniform(0.01, 0.02, (4, 48)).astype(np.float32),
        RNG.normal(size=(4, 48)).astype(np.float32),
    ),
    "fp8": Fp8.of(ARRAY),
}


@pytest.fixture(params=KINDS)
def weight(request):
    return KINDS[request.param]


def test_its_doors_compute_what_its_dense_array_does(weight):
    dense = np.asarray(weight.dense())
    x = jnp.asarray(RNG.normal(size=(3, 128)), jnp.float32)
    assert weight.shape == SHAPE == dense.shape
    np.testing.assert_allclose(weight.matmul(x), x @ dense, rtol=1e-4, atol=1e-4)
    narrow = x[:, :48]
    np.testing.assert_allclose(weight.matmul_transposed(narrow), narrow @ dense.T, atol=1e-4)
    ids = jnp.array([[0, 127, 33], [64, 9, 31]])
    np.testing.assert_allclose(weight.rows(ids), dense[ids], rtol=1e-6)


def test_its_parts_make_it_again_on_the_host_and_on_a_mesh(weight):
    again = map_parts(weight, lambda part, axes: np.asarray(part))
    np.testing.assert_array_equal(again.dense(), weight.dense())
    for spec in (P("tensor", "fsdp"), P("fsdp", ("tensor",))):
        sharding = NamedSharding(llama_jax.make_mesh(fsdp=2, tensor=4), spec)
        cut = put_weight(weight, SHAPE, sharding, name="w")
        np.testing.assert_array_equal(cut.dense(), weight.dense())
        shards = [part.addressable_shards[0].data for part in cut.parts().values()]
        assert sum(shard.nbytes for shard in shards) < stored_bytes(weight, SHAPE) / 2


def test_the_integers_and_scales_given_are_kept_to_the_bit():
    integers = RNG.integers(0, 16, SHAPE, np.uint8)
    scale, minimum = RNG.normal(size=(2, 4, 48)).astype(np.float32)
    weight = Int4.of_integers(integers, scale, minimum, dtype=jnp.bfloat16)
    np.testing.assert_array_equal(weight.integers(), integers)
    wide = np.repeat(scale, 32, axis=0), np.repeat(minimum, 32, axis=0)
    np.testing.assert_array_equal(weight.dense(), integers * wide[0] + wide[1])
    centred = Int4.of_integers(integers, scale)
    np.testing.assert_array_equal(centred.dense(), (integers.astype(np.float32) - 8) * wide[0])
    np.testing.assert_array_equal(packed(jnp.asarray(integers)), weight.words)
    assert weight.rows(jnp.array([3])).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("kind", "bits"), [("int8", 8.25), ("int8 in groups", 8.5), ("int4", 5), ("fp8", 8.25)]
)
def test_how_many_bits_a_number_takes(kind, bits):
    assert stored_bytes(KINDS[kind], SHAPE) * 8 == bits * np.prod(SHAPE)


def test_rounding_errs_by_half_a_step_at_most():
    steps = np.abs(ARRAY).max(axis=0) / 127
    assert (np.abs(KINDS["int8"].dense() - ARRAY) <= steps / 2 * 1.0001).all()
    in_groups = np.abs(np.asarray(KINDS["int8 in groups"].dense()) - ARRAY).reshape(4, 32, 48)
    steps = np.abs(ARRAY).reshape(4, 32, 48).max(axis=1) / 127
    # A bfloat16 scale may be a 512th larger, and the steps with it.
    assert (in_groups <= steps[:, None] / 2 * 1.003).all()
    assert np.square(in_groups).mean() < np.square(KINDS["int8"].dense() - ARRAY).mean()
    error = np.abs(KINDS["fp8"].dense() - ARRAY)
    assert (error <= np.abs(ARRAY) / 16 * 1.0001 + np.abs(ARRAY).max(axis=0) * 2**-18).all()


def test_int4s_searched_scales_err_less_than_those_of_the_furthest_number():
    groups = ARRAY.reshape(4, 32, 48)
    furthest = np.take_along_axis(groups, np.abs(groups).argmax(axis=1)[:, None], axis=1)
    scale = furthest / -8
    plain = np.clip(np.round(groups / scale), -8, 7) * scale - groups
    ours = (np.asarray(KINDS["int4"].dense()) - ARRAY).reshape(groups.shape)
    assert (np.square(ours).sum(axis=1) <= np.square(plain).sum(axis=1) * 1.0001).all()
    assert np.square(ours).mean() < 0.9 * np.square(plain).mean()


@pytest.mark.parametrize("make", [Int8.of, Int4.of, Fp8.of])
def test_zeros_stay_zeros(make):
    np.testing.assert_array_equal(make(np.zeros((64, 4), np.float32)).dense(), np.zeros((64, 4)))


INT8, UINT8 = np.zeros((64, 4), np.int8), np.zeros((64, 4), np.uint8)
ONES = np.ones((2, 4), np.float32)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Int8.of(ARRAY, group=33), "group=33 does not divide the 128 inputs"),
        (lambda: Int8.of_integers(UINT8, ONES), "values are uint8; give them as int8"),
        (lambda: Int8.of_integers(INT8, ONES[:, :3]), r"scale of shape \[2, 3\] does not fit int8"),
        (lambda: Int8.of_integers(INT8, ONES, ONES[0]), r"minimum of shape \[4\] does not fit"),
        (lambda: Int8.of_integers(INT8, ONES.astype(int)), "scale is int64; give floating-point"),
        (lambda: Int4.of(ARRAY[:100]), "group=32 does not divide the 100 inputs"),
        (lambda: Int4.of_integers(UINT8[:40], ONES), "no whole groups of 32 inputs; take Int8"),
        (lambda: Int4.of_integers(INT8, ONES), "integers are int8; give them as uint8"),
        (lambda: Int4.of_integers(UINT8, np.ones((4, 4), np.float32)), "one for each 32 inputs"),
        (lambda: Fp8.of_values(UINT8, ONES[0]), "values are uint8; give them as float8_e4m3fn"),
        (lambda: Int8.of(ARRAY[0]), r"an array of shape \[48\] is no matrix"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def test_a_mesh_that_splits_a_group_is_refused():
    sharding = NamedSharding(llama_jax.make_mesh(tensor=8), P("tensor", None))
    with pytest.raises(ValueError, match=r"w: words covers groups of 32 along axis 0.*\[128, 48\]"):
        put_weight(KINDS["int4"], SHAPE, sharding, name="w")
    cut = put_weight(KINDS["int8"], SHAPE, sharding, name="w")
    np.testing.assert_array_equal(cut.dense(), KINDS["int8"].dense())


def test_a_gradient_flows_to_what_it_multiplies(weight):
    x = jnp.asarray(RNG.normal(size=(3, 128)), jnp.float32)
    found = jax.grad(lambda x: jnp.square(weight.matmul(x)).sum())(x)
    dense = np.asarray(weight.dense())
    np.testing.assert_allclose(found, 2 * (x @ dense) @ dense.T, rtol=1e-3, atol=1e-3)


def test_rounded_activations_give_a_row_the_same_bits_in_any_company():
    weight = Int8Dynamic.of(ARRAY)
    dense = np.asarray(weight.dense())
    np.testing.assert_array_equal(dense, KINDS["int8"].dense())
    np.testing.assert_array_equal(weight.rows(jnp.array([[3, 127]])), dense[[[3, 127]]])
    product = jax.jit(lambda x: weight.matmul(x))
    x = jnp.asarray(RNG.normal(size=(5, 128)), jnp.float32)
    together = product(x)
    assert 0 < np.abs(together - x @ dense).max() < 0.02 * np.abs(together).max()
    for row in range(5):
        np.testing.assert_array_equal(product(x[row : row + 1])[0], together[row])
    y = x[:, :48]
    back = weight.matmul_transposed(y)
    assert 0 < np.abs(back - y @ dense.T).max() < 0.03 * np.abs(back).max()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_gradient_passes_the_rounding_of_activations_by(dtype, transposed):
    weight = Int8Dynamic.of(ARRAY)
    product = weight.matmul_transposed if transposed else weight.matmul
    width, dense = (48, weight.dense().T) if transposed else (128, weight.dense())
    x, g = (jnp.asarray(RNG.normal(size=(2, 3, n)), dtype) for n in (width, 176 - width))
    (found,) = jax.vjp(product, x)[1](g)
    assert found.dtype == x.dtype
    want, rtol = g.astype(jnp.float32) @ dense.T, 1e-5 if dtype == "float32" else 1e-2
    np.testing.assert_allclose(found.astype(jnp.float32), want, rtol=rtol, atol=rtol)


def test_rounded_activations_are_cut_and_put_together_again():
    weight = Int8Dynamic.of(ARRAY)
    sharding = NamedSharding(llama_jax.make_mesh(fsdp=2, tensor=4), P("tensor", "fsdp"))
    cut = put_weight(weight, SHAPE, sharding, name="w")
    assert cut.values.addressable_shards[0].data.shape == (24, 32)
    x = jnp.asarray(RNG.normal(size=(3, 128)), jnp.float32)
    np.testing.assert_array_equal(jax.jit(Int8Dynamic.matmul)(cut, x), weight.matmul(x))
    with pytest.raises(ValueError, match=r"are not int8 \[out, in\] and \[out\]"):
        Int8Dynamic.from_parts({"values": INT8, "scale": ONES}, {}, np.dtype("float32"))
