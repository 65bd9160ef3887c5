"""Writes the zip files that `torch.save` writes, without torch."""

from __future__ import annotations

import dataclasses
import math
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

_STORAGES = {
    np.dtype(np.float16): "HalfStorage",
    np.dtype(ml_dtypes.bfloat16): "BFloat16Storage",
    np.dtype(np.float32): "FloatStorage",
    np.dtype(np.float64): "DoubleStorage",
    np.dtype(np.int8): "CharStorage",
    np.dtype(np.int64): "LongStorage",
    np.dtype(np.bool_): "BoolStorage",
}
FLOAT8 = np.dtype(ml_dtypes.float8_e4m3fn)


@dataclasses.dataclass(frozen=True)
class Global:
    """A name, as the pickle says it."""

    module: str
    name: str


@dataclasses.dataclass(frozen=True)
class Call:
    """The result of `function(*arguments)`, or with `state` also of `__setstate__`."""

    function: Any
    arguments: tuple[Any, ...] = ()
    state: Any = None


@dataclasses.dataclass(frozen=True)
class Persistent:
    """What the archive holds beside the pickle."""

    id: Any


@dataclasses.dataclass(frozen=True)
class View:
    """A strided view of a flat array, which other views may share."""

    storage: np.ndarray
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Parameter:
    """A tensor that a module would train."""

    data: np.ndarray | View


ORDERED_DICT = Global("collections", "OrderedDict")
REBUILD_TENSOR = Global("torch._utils", "_rebuild_tensor_v2")
REBUILD_TENSOR_OF_DTYPE = Global("torch._utils", "_rebuild_tensor_v3")
UNTYPED = Global("torch.storage", "UntypedStorage")
REBUILD_PARAMETER = Global("torch._utils", "_rebuild_parameter")


def dump(value: Any) -> bytes:
    """The opcodes that make `value`, of protocol 2 and without a memo."""
    match value:
        case None | True | False:
            return {None: b"N", True: b"\x88", False: b"\x89"}[value]
        case int() if -(2**31) <= value < 2**31:
            return b"J" + struct.pack("<i", value)
        case int():
            digits = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            return b"\x8a" + bytes([len(digits)]) + digits
        case float():
            return b"G" + struct.pack(">d", value)
        case str():
            return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
        case tuple():
            return b"(" + b"".join(map(dump, value)) + b"t"
        case list():
            return b"](" + b"".join(map(dump, value)) + b"e"
        case dict():
            return b"}" + items(value)
        case Global():
            return f"c{value.module}\n{value.name}\n".encode()
        case Call():
            made = dump(value.function) + dump(value.arguments) + b"R"
            return made if value.state is None else made + dump(value.state) + b"b"
        case Persistent():
            return dump(value.id) + b"Q"
    raise TypeError(value)


def items(values: Mapping[Any, Any]) -> bytes:
    """The opcodes that fill the dict on top of the stack."""
    return b"(" + b"".join(dump(key) + dump(value) for key, value in values.items()) + b"u"


def pickled(value: bytes) -> bytes:
    """A whole pickle from the opcodes of its value."""
    return b"\x80\x02" + value + b"."


class Storages:
    """The arrays met while pickling, each once, in the order of their keys."""

    def __init__(self) -> None:
        self.arrays: list[np.ndarray] = []

    def tensor(self, value: np.ndarray | View | Parameter, **changes: Any) -> Call:
        """`value` as torch pickles it; `changes` replaces fields, truthfully or not."""
        if isinstance(value, Parameter):
            return Call(REBUILD_PARAMETER, (self.tensor(value.data), True, Call(ORDERED_DICT)))
        if isinstance(value, np.ndarray):
            flat = np.ascontiguousarray(value).reshape(-1)
            value = View(flat, 0, value.shape, _contiguous(value.shape))
        keys = [i for i, array in enumerate(self.arrays) if array is value.storage]
        if not keys:
            self.arrays.append(value.storage)
        key = keys[0] if keys else len(self.arrays) - 1
        is_float8 = value.storage.dtype == FLOAT8
        fields: dict[str, Any] = {
            "storage": UNTYPED if is_float8 else Global("torch", _STORAGES[value.storage.dtype]),
            "key": str(key),
            "numel": value.storage.size,
            "offset": value.offset,
            "size": value.size,
            "stride": value.stride,
            **changes,
        }
        stored = ("storage", fields["storage"], fields["key"], "cpu", fields["numel"])
        layout = (fields["offset"], fields["size"], fields["stride"])
        given = (Persistent(stored), *layout, False, Call(ORDERED_DICT))
        if is_float8:
            dtype = Global("torch", changes.get("dtype", "float8_e4m3fn"))
            return Call(REBUILD_TENSOR_OF_DTYPE, (*given, dtype))
        return Call(REBUILD_TENSOR, given)


def save(
    path: Path,
    state: Mapping[str, np.ndarray | View | Parameter],
    *,
    prefix: str = "archive",
    metadata: bool = False,
) -> None:
    """Writes a state dict: a plain dict, or with `metadata` as a module's `state_dict()` is."""
    storages = Storages()
    tensors = {name: storages.tensor(value) for name, value in state.items()}
    value = dump(tensors)
    if metadata:
        state_of_dict = {"_metadata": Call(ORDERED_DICT, (), None)}
        value = dump(Call(ORDERED_DICT)) + items(tensors) + dump(state_of_dict) + b"b"
    write(path, pickled(value), storages.arrays, prefix=prefix)


def write(
    path: Path,
    data_pkl: bytes,
    arrays: list[np.ndarray] | None = None,
    *,
    prefix: str = "archive",
    byteorder: bytes = b"little",
    compression: int = zipfile.ZIP_STORED,
) -> None:
    """Writes the archive around a pickle."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr(f"{prefix}/data.pkl", data_pkl)
        archive.writestr(f"{prefix}/byteorder", byteorder)
        for key, array in enumerate(arrays or []):
            archive.writestr(f"{prefix}/data/{key}", array.tobytes())
        archive.writestr(f"{prefix}/version", b"3\n")


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
