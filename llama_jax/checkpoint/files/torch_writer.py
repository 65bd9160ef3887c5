"""torch's zip files written without torch, tensor by tensor, in one pass.

What `torch.save` writes: a pickle that names the tensors, and a record of raw numbers for each.
Every record begins at a multiple of 64 bytes, so that a reader may map the file.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from llama_jax.checkpoint.export_tensor import ExportTensor

Stream = Callable[[ExportTensor], Iterable[np.ndarray]]
"""A tensor's blocks in the order and the dtype of the file."""

_STORAGES = {"float16": "HalfStorage", "bfloat16": "BFloat16Storage", "float32": "FloatStorage"}
_PLACE = "cpu"
"""Where a tensor lay: in this format a word for memory, whatever machine wrote the file."""
_ALIGNMENT = 64
LIMIT = 0xFFFFFFFF
"""From here on a size or an offset stands in a field of 64 bits ..."""
_ELSEWHERE = 0xFFFFFFFF
"""... and its field of 32 bits says this."""


def write_torch_file(path: Path, tensors: Sequence[ExportTensor], stream: Stream) -> None:
    """Writes a state dict that `torch.load(path, weights_only=True)` reads."""
    with path.open("xb") as file:
        archive = _Archive(file, path.stem)
        archive.add("data.pkl", [_pickle(tensors)])
        archive.add("byteorder", [b"little"])
        for key, tensor in enumerate(tensors):
            blocks = (np.ravel(block).view(np.uint8).data for block in stream(tensor))
            archive.add(f"data/{key}", blocks, tensor.nbytes)
        archive.add("version", [b"3\n"])
        archive.close()
        file.flush()
        os.fsync(file.fileno())


class _Record(NamedTuple):
    name: bytes
    crc: int
    size: int
    offset: int


class _Archive:
    """A zip file of uncompressed records, written front to back."""

    def __init__(self, file: BinaryIO, folder: str) -> None:
        self.file, self.folder = file, folder
        self.records: list[_Record] = []

    def add(self, name: str, blocks: Iterable[bytes | memoryview], size: int | None = None) -> None:
        """Writes one record; `size` in bytes is needed where `blocks` is not a list."""
        if size is None:
            blocks = list(blocks)
            size = sum(map(len, blocks))
        full, offset, crc = f"{self.folder}/{name}".encode(), self.file.tell(), 0
        self.file.write(_local_header(full, 0, size, offset))
        start = self.file.tell()
        for block in blocks:
            crc = zlib.crc32(block, crc)
            self.file.write(block)
        end = self.file.tell()
        if end - start != size:
            raise ValueError(f"{full!r} has {end - start} bytes where {size} were announced")
        self.file.seek(offset)
        self.file.write(_local_header(full, crc, size, offset))
        self.file.seek(end)
        self.records.append(_Record(full, crc, size, offset))

    def close(self) -> None:
        """Writes the directory, which zip keeps at the end."""
        start, count = self.file.tell(), len(self.records)
        for record in self.records:
            self.file.write(_directory_entry(record))
        end = self.file.tell()
        if count >= 0xFFFF or start >= LIMIT:
            fields = (44, 45, 45, 0, 0, count, count, end - start, start)
            self.file.write(b"PK\6\6" + struct.pack("<Q2H2I4Q", *fields))
            self.file.write(b"PK\6\7" + struct.pack("<IQI", 0, end, 1))
        counts = min(count, 0xFFFF)
        sizes = _field(end - start), _field(start)
        self.file.write(b"PK\5\6" + struct.pack("<4H2IH", 0, 0, counts, counts, *sizes, 0))


def _field(number: int) -> int:
    return number if number < LIMIT else _ELSEWHERE


def _local_header(name: bytes, crc: int, size: int, offset: int) -> bytes:
    """What stands before a record, padded so that the record itself is aligned."""
    wide = struct.pack("<2H2Q", 1, 16, size, size) if size >= LIMIT else b""
    end = offset + 30 + len(name) + len(wide) + 4
    padding = -end % _ALIGNMENT
    extra = wide + b"FB" + struct.pack("<H", padding) + b"Z" * padding  # torch's own padding field
    known = _field(size)
    fixed = struct.pack("<5H3I2H", *_VERSION_AND_TIME, crc, known, known, len(name), len(extra))
    return b"PK\3\4" + fixed + name + extra


def _directory_entry(record: _Record) -> bytes:
    name, crc, size, offset = record
    large = [number for number in (size, size, offset) if number >= LIMIT]
    extra = struct.pack("<2H", 1, 8 * len(large)) if large else b""
    extra += b"".join(struct.pack("<Q", number) for number in large)
    known, at = _field(size), _field(offset)
    fixed = struct.pack(
        "<6H3I5H2I",
        *(45, *_VERSION_AND_TIME, crc, known, known, len(name), len(extra), 0, 0, 0, 0, at),
    )
    return b"PK\1\2" + fixed + name + extra


# Needs zip 4.5; names in UTF-8; not compressed; 1980-01-01, so that equal weights are equal files.
_VERSION_AND_TIME = (45, 0x800, 0, 0, 0x21)


def _pickle(tensors: Sequence[ExportTensor]) -> bytes:
    """A dict of the tensors, in the opcodes of pickle's protocol 2 that torch itself uses."""
    items = [_text(tensor.name) + _tensor(key, tensor) for key, tensor in enumerate(tensors)]
    return b"\x80\x02}(" + b"".join(items) + b"u."


def _tensor(key: int, tensor: ExportTensor) -> bytes:
    """`_rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks)`."""
    size = tensor.shape
    strides = [int(np.prod(size[axis + 1 :])) for axis in range(len(size))]
    kind = f"ctorch\n{_STORAGES[tensor.dtype.name]}\n".encode()
    numbers = int(np.prod(size))
    storage = b"(" + _text("storage") + kind + _text(str(key)) + _text(_PLACE) + _integer(numbers)
    arguments = [storage + b"tQ", _integer(0), _tuple(size), _tuple(strides), b"\x89"]
    hooks = b"ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + b"".join(arguments) + hooks + b"tR"


def _tuple(numbers: Sequence[int]) -> bytes:
    return b"(" + b"".join(map(_integer, numbers)) + b"t"


def _text(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text.encode())) + text.encode()


def _integer(number: int) -> bytes:
    if number < 2**31:
        return b"J" + struct.pack("<i", number)
    digits = number.to_bytes(number.bit_length() // 8 + 1, "little")
    return b"\x8a" + bytes([len(digits)]) + digits
