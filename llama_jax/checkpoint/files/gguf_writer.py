"""GGUF files, written tensor by tensor in one pass: every size is known beforehand."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

_ALIGNMENT = 32
_U32, _I32, _F32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9


class Entry(Protocol):
    """A tensor of the file, as its description needs it."""

    name: str

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def number(self) -> int: ...

    @property
    def stored_bytes(self) -> int: ...


def write_gguf(
    path: Path,
    metadata: Mapping[str, Any],
    tensors: Sequence[Any],
    stream: Callable[[Any], Iterable[np.ndarray]],
) -> None:
    """Writes the tensors (each an `Entry`), whose blocks `stream` gives as the file has them.

    A value of the metadata is a str, a bool, an int below 2**32, a float, a list of str, or an
    array of int32 or float32.
    """
    infos, end = b"", 0
    for tensor in tensors:
        shape = tensor.shape[::-1]  # the fastest axis first
        infos += _text(tensor.name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        infos += struct.pack("<IQ", tensor.number, end)
        end = _aligned(end + tensor.stored_bytes)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    head += b"".join(_text(key) + _value(value) for key, value in metadata.items()) + infos
    with path.open("xb") as file:
        file.write(head.ljust(_aligned(len(head)), b"\0"))
        start = file.tell()
        for tensor in tensors:
            for block in stream(tensor):
                file.write(np.ravel(block).view(np.uint8).data)
            file.write(b"\0" * (_aligned(file.tell()) - file.tell()))
        if file.tell() - start != end:
            raise ValueError(f"{path} got {file.tell():,} bytes, not what its header announces")
        file.flush()
        os.fsync(file.fileno())


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(value: Any) -> bytes:
    """A value with its type before it."""
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _text(value)
    if isinstance(value, list):
        return struct.pack("<IIQ", _ARRAY, _STRING, len(value)) + b"".join(map(_text, value))
    if isinstance(value, np.ndarray):
        kind, dtype = (_I32, "<i4") if value.dtype.kind == "i" else (_F32, "<f4")
        return struct.pack("<IIQ", _ARRAY, kind, len(value)) + value.astype(dtype).tobytes()
    if isinstance(value, bool):
        return struct.pack("<I?", _BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", _U32, value)
    return struct.pack("<If", _F32, value)
