"""New keys and values land in their slots, whatever fits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax.ops.slots import write

HEADS, HEAD_DIM = 2, 4


def some(seed, *shape, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(seed), shape).astype(dtype)


def written_in_numpy(slots, new, positions):
    out = np.array(slots)
    for row, places in enumerate(np.asarray(positions)):
        for time, place in enumerate(places):
            if place < out.shape[2]:
                out[row, :, place] = np.asarray(new)[row, :, time]
    return out


@pytest.mark.parametrize(
    ("starts", "time"),
    [
        pytest.param((0, 0), 8, id="whole"),
        pytest.param((3, 1), 5, id="rows apart, the first to the very end"),
        pytest.param((3, 1), 6, id="one row beyond the end"),
        pytest.param((7, 9), 4, id="all but one beyond"),
        pytest.param((8, 20), 3, id="nothing fits"),
        pytest.param((0, 2), 12, id="more than there are slots"),
        pytest.param((4, 8), 1, id="one token"),
    ],
)
def test_what_fits_is_written_and_what_lies_beyond_is_dropped(starts, time):
    slots = [some(i, 2, HEADS, 8, HEAD_DIM) for i in range(2)]
    new = [some(9 + i, 2, HEADS, time, HEAD_DIM) for i in range(2)]
    positions = jnp.array(starts)[:, None] + jnp.arange(time)
    for out, old, x in zip(jax.jit(write)(slots, new, positions), slots, new, strict=True):
        np.testing.assert_array_equal(out, written_in_numpy(old, x, positions))


def test_what_is_written_takes_the_dtype_of_the_slots():
    slots, new = [jnp.zeros((1, 1, 4, 2))], [some(0, 1, 1, 3, 2, dtype=jnp.bfloat16)]
    (out,) = write(slots, new, jnp.arange(3)[None])
    assert out.dtype == jnp.float32
    np.testing.assert_array_equal(out[:, :, :3], new[0])


@pytest.mark.parametrize("batch", [1, 4])
def test_slots_are_written_in_place_and_nothing_is_copied(batch):
    shape = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    slots = [shape((batch, 8, 512, 64)) for _ in range(4)]
    new = [shape((batch, 8, 256, 64)) for _ in range(4)]
    positions = jax.ShapeDtypeStruct((batch, 256), jnp.int32)
    memory = jax.jit(write, donate_argnums=0).lower(slots, new, positions).compile()
    memory = memory.memory_analysis()
    one = batch * 8 * 256 * 64 * 4
    assert memory.alias_size_in_bytes == 4 * 2 * one
    assert memory.temp_size_in_bytes < one // 4
