"""safetensors files as memory-mapped arrays, every byte of them accounted for."""

from __future__ import annotations

import io
import itertools
import json
import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from llama_jax.checkpoint.files.messages import (
    FETCH_AGAIN,
    LFS_POINTER,
    Refused,
    check_tensor_name,
    shorten,
)
from llama_jax.checkpoint.files.regular import open_regular

# Far above any model (405B: 0.2 MB in all), far below what would hurt to parse.
_MAX_HEADER_BYTES = 4 * 2**20
_DTYPES: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


def read_safetensors(path: str | Path) -> dict[str, np.ndarray]:
    """The tensors in a safetensors file, each a read-only view of the mapped file.

    No weight is read. The header must place every tensor within the file, and all of them side by
    side: whatever else it says comes out as one ValueError that names the file and the tensor.
    """
    with open_regular(path) as file:
        try:
            return _read(file)
        except Refused as error:
            raise ValueError(f"{path}: {error}") from error


def _read(file: io.FileIO) -> dict[str, np.ndarray]:
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    head = file.read(64)
    _check_kind(head, size)
    length = int.from_bytes(head[:8], "little")
    if length > _MAX_HEADER_BYTES:
        raise Refused(
            f"its header claims {length:,} bytes and a model's stays below {_MAX_HEADER_BYTES:,}; "
            f"it is no safetensors file, or damaged: {FETCH_AGAIN}"
        )
    if 8 + length > size:
        raise Refused(f"its header of {length:,} bytes is cut off at {size:,}; {FETCH_AGAIN}")
    memory = np.memmap(file, dtype=np.uint8, mode="r")
    entries = _header(bytes(memory[8 : 8 + length]))
    data = memory[8 + length :]
    placed = {name: _placed(name, entry, len(data)) for name, entry in entries.items()}
    _check_side_by_side({name: place[2:] for name, place in placed.items()}, len(data))
    return {
        name: np.ndarray(shape, dtype, data, begin)
        for name, (shape, dtype, begin, _) in placed.items()
    }


_OTHER_KINDS = (
    LFS_POINTER,
    (
        b"<",
        "is a web page; the download was refused: sign in, or accept the license, and try again",
    ),
    (b"GGUF", "is a GGUF file, not safetensors; pass its own path, or call it *.gguf"),
    (b"PK\x03\x04", "is a file that torch.save wrote, under another name; call it *.bin"),
)


def _check_kind(head: bytes, size: int) -> None:
    if not size:
        raise Refused(f"is empty; {FETCH_AGAIN}")
    if head[8:9] != b"{":
        for start, what in _OTHER_KINDS:
            if head.lstrip().startswith(start):
                raise Refused(what)
        raise Refused(f"is not a safetensors file; {FETCH_AGAIN}")


def _header(text: bytes) -> dict[str, dict[str, Any]]:
    """What the header says of each tensor; the metadata, which is for people, is left out."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise Refused(f"its header names {shorten(key)} twice; {FETCH_AGAIN}")
            found[key] = value
        return found

    try:
        header = json.loads(text.decode(), object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        if isinstance(error, Refused):
            raise
        raise Refused(f"its header is not JSON ({shorten(error)}); {FETCH_AGAIN}") from error
    if not isinstance(header, dict):
        raise Refused(f"its header is a {type(header).__name__}, not an object; {FETCH_AGAIN}")
    header.pop("__metadata__", None)
    return header


def _placed(
    name: str, entry: Any, data_bytes: int
) -> tuple[tuple[int, ...], np.dtype[Any], int, int]:
    """A tensor's shape, dtype and where its bytes begin and end."""
    check_tensor_name(name)
    shown = shorten(name)
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise Refused(
            f"its header says of {shown} {shorten(entry)} and not its dtype, shape and "
            f"data_offsets; {FETCH_AGAIN}"
        )
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(kind, str) or kind not in _DTYPES:
        raise Refused(
            f"{shown} has the dtype {shorten(kind)}, which is not read; "
            "get the model's bfloat16 files"
        )
    # No axis is longer than the file, so nothing overflows, were the tensor empty for another.
    if not _counts(shape, data_bytes) or len(shape) > 16:
        raise Refused(f"{shown} has the impossible shape {shorten(shape)}; {FETCH_AGAIN}")
    if not _counts(offsets, data_bytes) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise Refused(
            f"{shown} lies at {shorten(offsets)}, outside the {data_bytes:,} bytes behind the "
            f"header; the file is cut off or damaged: {FETCH_AGAIN}"
        )
    dtype, (begin, end) = np.dtype(_DTYPES[kind]), offsets
    needed = math.prod(shape) * dtype.itemsize
    if end - begin != needed:
        raise Refused(
            f"{shown} of shape {shape} in {kind} is {needed:,} bytes, and its data_offsets leave "
            f"it {end - begin:,}; {FETCH_AGAIN}"
        )
    return tuple(shape), dtype, begin, end


def _counts(values: Any, at_most: int) -> bool:
    return isinstance(values, list) and all(
        isinstance(n, int) and not isinstance(n, bool) and 0 <= n <= at_most for n in values
    )


def _check_side_by_side(spans: dict[str, tuple[int, int]], data_bytes: int) -> None:
    """Checks that the tensors cover the data, each byte once."""
    ordered = sorted(spans.items(), key=lambda item: item[1])
    edges = [("its header", (0, 0)), *ordered, ("its end", (data_bytes, data_bytes))]
    for (former, (_, end)), (name, (begin, _)) in itertools.pairwise(edges):
        if begin < end:
            raise Refused(f"{shorten(name)} overlaps {shorten(former)}; {FETCH_AGAIN}")
        if begin > end:
            raise Refused(
                f"{begin - end:,} bytes before {shorten(name)} belong to no tensor; {FETCH_AGAIN}"
            )
