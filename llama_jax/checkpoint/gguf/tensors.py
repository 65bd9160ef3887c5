"""Where each tensor of a GGUF file lies, and its numbers as they are asked for."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from llama_jax.checkpoint.blocks import ReadByPart, copy_in_bands
from llama_jax.checkpoint.files.mapped import check_whole
from llama_jax.checkpoint.files.messages import FETCH_AGAIN, listed, shorten
from llama_jax.checkpoint.gguf.types import NOT_READ, TYPES, GGUFType
from llama_jax.checkpoint.gguf.unpack import Unpacked
from llama_jax.checkpoint.placing import Index
from llama_jax.tokenizer.gguf_header import BrokenGGUF, Cursor, GGUFHeader

_MAX_TENSORS, _MAX_AXES = 2**16, 4
_INFO_BYTES = 32  # the least that a description takes
_BAND = 2**21  # weights unpacked at once: of fewer, threads wait for Python's lock


@dataclasses.dataclass(frozen=True, eq=False)
class RawTensor:
    """One tensor as it lies in a file."""

    kind: GGUFType
    shape: tuple[int, ...]
    """As NumPy has it, the fastest axis last: [out, in] of a matrix."""
    memory: np.ndarray
    """Its bytes, a view of the mapped file."""
    file: Path

    def plain(self) -> np.ndarray | None:
        """The tensor as an array over the file; None of a quantized one."""
        if self.kind.dtype is None:
            return None
        return np.ndarray(self.shape, self.kind.dtype, self.memory)

    def blocks(self, rows: slice, columns: slice) -> np.ndarray:
        """The bytes of the blocks that hold these rows and columns, uint8 [blocks, bytes]."""
        kind = self.kind
        check_whole(self.memory)
        blocks = self.memory.reshape(self.shape[0], -1, kind.nbytes)
        first, last = columns.start // kind.block, -(-columns.stop // kind.block)
        return np.ascontiguousarray(blocks[rows, first:last]).reshape(-1, kind.nbytes)

    def unpacked(self, rows: slice, columns: slice) -> Unpacked:
        """The blocks of a quantized matrix that hold these rows and columns."""
        if self.kind.unpack is None:
            raise ValueError(f"a tensor of {self.kind.name} has no blocks to unpack")
        with np.errstate(all="ignore"):  # a scale that is no number is seen in what it scales
            return self.kind.unpack(self.blocks(rows, columns))

    def values(self, rows: slice, columns: slice) -> np.ndarray:
        """Part of a quantized matrix, float32: whole blocks are unpacked, and then cut."""
        before = columns.start % self.kind.block
        with np.errstate(all="ignore"):
            whole = self.unpacked(rows, columns).dense().reshape(rows.stop - rows.start, -1)
        return whole[:, before : before + columns.stop - columns.start]


@dataclasses.dataclass(frozen=True)
class QuantizedTensor(ReadByPart):
    """A weight in our layout whose file holds it in blocks, dequantized as it is read."""

    raw: RawTensor
    transposed: bool
    """Whether the file holds [out, in]."""

    @property
    def stored_as(self) -> str:
        """What llama.cpp calls the format of its numbers."""
        return self.raw.kind.name

    @property
    def dtype(self) -> np.dtype:
        """float32, which holds each value that the blocks mean without another rounding."""
        return np.dtype(np.float32)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.raw.shape[::-1] if self.transposed else self.raw.shape

    def read(self, index: Index, out: np.ndarray) -> None:
        """Reads the part under `index` into `out`, in the dtype of `out`."""
        stored = out.T if self.transposed else out
        rows, columns = reversed(index) if self.transposed else index

        def fill(band: slice) -> None:
            values = self.raw.values(band, columns)
            copy_in_bands(values, stored[band.start - rows.start : band.stop - rows.start])

        in_bands(self.raw, rows, fill)


def in_bands(raw: RawTensor, rows: slice, fill: Callable[[slice], None]) -> None:
    """Calls `fill` with some of a matrix's rows, as many at a time as are unpacked at once.

    A band for each core is filled at the same time: NumPy computes without the GIL.
    """
    step = max(1, _BAND // max(1, raw.shape[1]))
    starts = range(rows.start, rows.stop, step)
    bands = (slice(start, min(start + step, rows.stop)) for start in starts)
    if len(starts) < 2:
        list(map(fill, bands))
        return
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(fill, bands))


def read_tensors(file: Path, header: GGUFHeader) -> dict[str, RawTensor]:
    """Every tensor by name, once it is known to lie within the file and in no other's bytes."""
    try:
        return _read(file, header)
    except BrokenGGUF as error:
        raise ValueError(f"{file}: {error}") from error


def _read(file: Path, header: GGUFHeader) -> dict[str, RawTensor]:
    cursor = Cursor(header.memory, header.end)
    if header.tensor_count > min(_MAX_TENSORS, cursor.left // _INFO_BYTES):
        raise BrokenGGUF(
            f"it claims {header.tensor_count:,} tensors, more than its bytes have room for or any "
            f"model has; {FETCH_AGAIN}"
        )
    alignment = header.metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 1 <= alignment <= 2**16 or alignment & (alignment - 1):
        raise BrokenGGUF(
            f"general.alignment={shorten(alignment)} must be a power of two up to 65,536; "
            f"{FETCH_AGAIN}"
        )
    found: dict[str, tuple[GGUFType, tuple[int, ...], int]] = {}
    for _ in range(header.tensor_count):
        name, kind, shape, offset = _description(cursor)
        if name in found:
            raise BrokenGGUF(f"it has the tensor {shorten(name)} twice; {FETCH_AGAIN}")
        found[name] = kind, shape, offset
    start = -(-cursor.at // alignment) * alignment
    data = header.memory[start:]
    _check_places(found, len(data), alignment)
    return {
        name: RawTensor(kind, shape, data[offset : offset + _nbytes(kind, shape)], file)
        for name, (kind, shape, offset) in found.items()
    }


def _description(cursor: Cursor) -> tuple[str, GGUFType, tuple[int, ...], int]:
    name = cursor.text("a tensor's name", at_most=2**10)
    axes = cursor.number("I", name)
    if not 1 <= axes <= _MAX_AXES:
        raise BrokenGGUF(f"{shorten(name)} has {axes:,} axes, and 1 to 4 are known; {FETCH_AGAIN}")
    shape = tuple(cursor.number("Q", name) for _ in range(axes))[::-1]
    number, offset = cursor.number("I", name), cursor.number("Q", name)
    if number not in TYPES:
        unread = NOT_READ.get(number, f"of the unknown type {number}")
        known = ", ".join(kind.name for kind in TYPES.values())
        raise BrokenGGUF(
            f"{shorten(name)} is {unread}, which is not read; get the model in one of {known}"
        )
    kind = TYPES[number]
    if not all(shape) or math.prod(shape) >= 2**48 or shape[-1] % kind.block:
        raise BrokenGGUF(
            f"{shorten(name)} has the impossible shape {list(shape)} for {kind.name}; {FETCH_AGAIN}"
        )
    return name, kind, shape, offset


def _nbytes(kind: GGUFType, shape: tuple[int, ...]) -> int:
    return math.prod(shape) // kind.block * kind.nbytes


def _check_places(
    found: dict[str, tuple[GGUFType, tuple[int, ...], int]], data_bytes: int, alignment: int
) -> None:
    """Checks that every tensor lies in the data, aligned, and no two share a byte."""
    former, end = "", 0
    for name, (kind, shape, offset) in sorted(found.items(), key=lambda item: item[1][2]):
        size = _nbytes(kind, shape)
        if offset % alignment:
            raise BrokenGGUF(
                f"{shorten(name)} lies at {offset:,}, no multiple of {alignment}; {FETCH_AGAIN}"
            )
        if offset < end:
            raise BrokenGGUF(f"{listed([name, former])} share bytes; {FETCH_AGAIN}")
        former, end = name, offset + size
        if end > data_bytes:
            raise BrokenGGUF(
                f"{shorten(name)} ends at {end:,}, and its tensors have {data_bytes:,} bytes; the "
                f"file is cut off or damaged: {FETCH_AGAIN}"
            )
