"""Parts of a weight in host memory."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from llama_jax.checkpoint.placing import Index


class Stored(Protocol):
    """A weight in our layout that lies in files of any format, and is read part by part."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype: ...

    @property
    def nbytes(self) -> int: ...

    def __getitem__(self, index: Any, /) -> np.ndarray:
        """The part under `index`, a slice per axis or `...`, as an array of its own."""
        ...

    def read(self, index: Index, out: np.ndarray) -> None:
        """Reads the part under `index` into `out`, in the dtype and the strides of `out`."""
        ...


class ReadByPart:
    """The rest of a `Stored`, made of its shape, its dtype and its `read`."""

    @property
    def nbytes(self: Stored) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def __getitem__(self: Stored, index: Any, /) -> np.ndarray:
        """The part under `index`: a slice (of step 1) per axis, or `...` for all."""
        index = (slice(None),) * len(self.shape) if index is Ellipsis else tuple(index)
        cuts = [one.indices(size)[:2] for one, size in zip(index, self.shape, strict=True)]
        out = np.empty([max(0, stop - start) for start, stop in cuts], self.dtype)
        self.read(tuple(slice(start, max(start, stop)) for start, stop in cuts), out)
        return out


@dataclasses.dataclass(frozen=True)
class Trimmed(ReadByPart):
    """An array on devices without the zeros that a mesh put after it: a `Stored`."""

    array: jax.Array
    shape: tuple[int, ...]

    @property
    def dtype(self) -> np.dtype:
        return self.array.dtype

    def __getitem__(self, index: Any, /) -> np.ndarray:
        return host_block(self.array, whole(self.shape) if index is Ellipsis else index)

    def read(self, index: Index, out: np.ndarray) -> None:
        out[...] = self[index]


Tensor = Stored | np.ndarray | jax.Array
COMPARED_BYTES = 4 * 2**20
"""About how much of a weight `same_bits` reads at once."""


def whole(shape: Sequence[int]) -> Index:
    """The index of all of an array."""
    return tuple(slice(0, size) for size in shape)


def cells(wanted: Index, sides: Sequence[int]) -> Iterator[Index]:
    """`wanted`, cut where a regular grid of cells with these sides is."""
    cuts = []
    for cut, side in zip(wanted, sides, strict=True):
        first = cut.start // side * side
        starts = range(first, max(cut.stop, first + 1), side)
        cuts.append([slice(max(s, cut.start), min(s + side, cut.stop)) for s in starts])
    return itertools.product(*cuts)


def host_block(tensor: Tensor, index: Index) -> np.ndarray:
    """A part of a weight in host memory."""
    if not isinstance(tensor, jax.Array):
        return tensor[index]
    out = np.empty([cut.stop - cut.start for cut in index], tensor.dtype)
    for shard in tensor.addressable_shards:
        if shard.replica_id == 0:
            inner, outer = [], []
            for cut, have, size in zip(index, shard.index, tensor.shape, strict=True):
                start, stop, _ = have.indices(size)
                low, high = max(cut.start, start), min(cut.stop, stop)
                inner.append(slice(low - start, max(high, low) - start))
                outer.append(slice(low - cut.start, max(high, low) - cut.start))
            # Sliced on the device: an array keeps the host copy of itself that is asked of it.
            if all(cut.stop > cut.start for cut in inner):
                out[tuple(outer)] = np.asarray(shard.data[tuple(inner)])
    return out


def copy_in_bands(source: np.ndarray, out: np.ndarray) -> None:
    """Copies an array into another of its shape, some rows at a time where it is transposed.

    A transposing copy of a large matrix in one go misses the cache at every number: measured at
    0.3 GB/s, where bands of 64 rows give 0.95 and bands of 16 give 2.5.
    """
    turned = (source.strides[0] < source.strides[-1]) != (out.strides[0] < out.strides[-1])
    step = 16 if turned else max(1, len(source))
    for row in range(0, len(source), step):
        out[row : row + step] = source[row : row + step]


def transposed(matrix: np.ndarray) -> np.ndarray:
    """The transpose, in memory of its own."""
    out = np.empty(matrix.shape[::-1], matrix.dtype)
    copy_in_bands(matrix.T, out)
    return out


class Cast:
    """Casts a weight's blocks to the dtype of a file, counting what is not finite on the way."""

    def __init__(self, dtype: np.dtype) -> None:
        self.dtype, self.broken, self.overflown = dtype, 0, 0

    def __call__(self, block: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore", invalid="ignore"):  # counted below
            cast = block.astype(self.dtype, copy=False)
        if found := count_not_finite(cast):
            before = count_not_finite(block)
            self.broken, self.overflown = self.broken + before, self.overflown + found - before
        return cast

    def warnings(self, name: str) -> Iterator[str]:
        """What a person should know of the weight, by the name that they know it by."""
        if self.broken:
            yield f"{name}: {self.broken} values are not finite (NaN or infinity)"
        if self.overflown:
            yield (
                f"{name}: {self.overflown} values overflow {self.dtype} and became infinite; "
                "bfloat16 and float32 reach further"
            )


_EXPONENT = {"bfloat16": 0x7F80, "float16": 0x7C00, "float32": 0x7F800000}


def count_not_finite(block: np.ndarray) -> int:
    """How many values have an exponent of all ones; none of integers.

    NumPy's isfinite is slow on bfloat16.
    """
    if block.dtype.name not in _EXPONENT:
        return 0
    ones = _EXPONENT[block.dtype.name]
    bits = np.ravel(block).view(f"u{block.dtype.itemsize}")
    scratch, count = np.empty(1 << 16, bits.dtype), 0  # small enough to stay in the cache
    for start in range(0, bits.size, scratch.size):
        part = bits[start : start + scratch.size]
        exponents = np.bitwise_and(part, ones, out=scratch[: part.size])
        if exponents.max() == ones:
            count += int(np.count_nonzero(exponents == ones))
    return count


def same_bits(
    a: Callable[[slice], np.ndarray], b: Callable[[slice], np.ndarray], rows: int, row_bytes: int
) -> bool:
    """Whether two tensors, read by rows, are bitwise equal; a NaN equals itself.

    Reads a few megabytes at a time, and a few rows first: two that differ are soon told apart.
    """
    begin, step = 0, 8
    while begin < rows:
        block = slice(begin, min(begin + step, rows))
        if a(block).tobytes() != b(block).tobytes():
            return False
        begin, step = block.stop, max(1, COMPARED_BYTES // row_bytes)
    return True
