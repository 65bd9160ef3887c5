"""From files straight to devices."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import numpy as np

from llama_jax.weights.weight import padded_shape

Index = tuple[slice, ...]
"""One slice per axis, with its bounds."""
Bounds = tuple[tuple[int, int], ...]
"""The same as numbers."""


def default_sharding() -> jax.sharding.Sharding:
    """All of an array on the default device, which `jax_default_device` may have chosen."""
    return jax.sharding.SingleDeviceSharding(jax.device_put(np.zeros(())).devices().pop())


class Placing:
    """An array on its way to its devices: host memory to fill, and then `placed`.

    A part that several devices hold is there once, in memory that JAX on CPU takes as it is: what
    is placed is held once. Where the sharding does not divide `shape`, zeros follow.
    """

    def __init__(
        self, shape: tuple[int, ...], dtype: np.dtype, sharding: jax.sharding.Sharding
    ) -> None:
        self._shape, self._sharding = padded_shape(shape, sharding), sharding
        self._parts: dict[Bounds, np.ndarray] = {}
        self.targets: list[tuple[Index, np.ndarray]] = []
        """What this process has use for, and the memory that it is to be read into."""
        for index in sharding.addressable_devices_indices_map(self._shape).values():
            bounds = self._bounds(index)
            if bounds not in self._parts:
                self._parts[bounds] = out = _aligned(tuple(b - a for a, b in bounds), dtype)
                self._add_target(bounds, shape, out)

    def placed(self) -> jax.Array:
        """The array, once every target is filled."""
        array = jax.make_array_from_callback(
            self._shape, self._sharding, lambda index: self._parts[self._bounds(index)]
        )
        # Before the next weight takes host memory. To wait hands Python to another thread.
        return array if array.is_ready() else array.block_until_ready()  # type: ignore[attr-defined]

    def _add_target(self, bounds: Bounds, shape: tuple[int, ...], out: np.ndarray) -> None:
        ends = [min(stop, size) for (_, stop), size in zip(bounds, shape, strict=True)]
        stored = tuple(
            slice(min(start, end), end) for (start, _), end in zip(bounds, ends, strict=True)
        )
        here = out[tuple(slice(cut.stop - cut.start) for cut in stored)]
        if here.shape != out.shape:
            out[...] = 0
        if here.size:
            self.targets.append((stored, here))

    def _bounds(self, index: tuple[slice, ...] | None) -> Bounds:
        cuts = zip(index or (), self._shape, strict=True)
        return tuple(cut.indices(size)[:2] for cut, size in cuts)


def place(
    shape: tuple[int, ...],
    dtype: np.dtype,
    sharding: jax.sharding.Sharding,
    fill: Callable[[Index, np.ndarray], None],
) -> jax.Array:
    """An array whose parts `fill(index, out)` reads, each on the process that has use for it."""
    placing = Placing(shape, dtype, sharding)
    for index, out in placing.targets:
        fill(index, out)
    return placing.placed()


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Memory at a 64-byte boundary; any other would be copied."""
    size = math.prod(shape) * dtype.itemsize
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)
