"""From files straight to devices."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import numpy as np

from llama_jax.sharding import padded_shape

Index = tuple[slice, ...]
"""One slice per axis, with its bounds."""


def default_sharding() -> jax.sharding.Sharding:
    """All of an array on the default device, which `jax_default_device` may have chosen."""
    return jax.sharding.SingleDeviceSharding(jax.device_put(np.zeros(())).devices().pop())


def place(
    shape: tuple[int, ...],
    dtype: np.dtype,
    sharding: jax.sharding.Sharding,
    fill: Callable[[Index, np.ndarray], None],
) -> jax.Array:
    """An array whose parts `fill(index, out)` reads, each on the process that has use for it.

    A part that several devices hold is read once, into memory that JAX on CPU takes as it is: what
    is placed is held once. Where the sharding does not divide `shape`, zeros follow.
    """

    padded = padded_shape(shape, sharding)

    @functools.cache
    def part(bounds: tuple[tuple[int, int], ...]) -> np.ndarray:
        out = _aligned(tuple(stop - start for start, stop in bounds), dtype)
        ends = [min(stop, size) for (_, stop), size in zip(bounds, shape, strict=True)]
        stored = tuple(
            slice(min(start, end), end) for (start, _), end in zip(bounds, ends, strict=True)
        )
        here = out[tuple(slice(cut.stop - cut.start) for cut in stored)]
        if here.shape != out.shape:
            out[...] = 0
        if here.size:
            fill(stored, here)
        return out

    def placed(index: tuple[slice, ...] | None) -> np.ndarray:
        cuts = zip(index or (), padded, strict=True)
        return part(tuple(cut.indices(size)[:2] for cut, size in cuts))

    array = jax.make_array_from_callback(padded, sharding, placed)
    return array.block_until_ready()  # before the next weight takes host memory


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Memory at a 64-byte boundary; any other would be copied."""
    size = math.prod(shape) * dtype.itemsize
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)
