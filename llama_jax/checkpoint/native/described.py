"""What a stranger's `weights/` says of itself, held against what lies there before it is opened.

The library behind it would unpack whatever a description names: a kilobyte can be a gigabyte.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from llama_jax.checkpoint.files.json_file import read_object, shown
from llama_jax.checkpoint.files.safe_paths import entries

_CODECS = ["bytes", "crc32c"]
"""All that is ever written here, and what an index is written with: no compression."""
_LEAST_SIDE = 64
"""No chunk is narrower than this and its weight: a file of bytes is not a million chunks."""
_MAX_AXES = 8


def check_described(weight: Path) -> None:
    """ValueError where a weight's `zarr.json` names another codec, or more than its files hold.

    What is not said here is the library's to refuse.
    """
    try:
        said = read_object(weight / "zarr.json")
        inner = _of_shards(said)
        _check_shape(said.get("shape"), inner.get("chunk_shape"))
        needed, held = math.prod(said["shape"]) * _itemsize(said.get("data_type")), _bytes(weight)
        if needed > held:
            raise ValueError(
                f"its shape {shown(said['shape'])} in {shown(said.get('data_type'))} is {needed:,} "
                f"bytes and its files have {held:,}, so some are missing or cut off"
            )
    except ValueError as error:
        raise ValueError(f"{weight} cannot be read: {error}; write the checkpoint again") from error


def _of_shards(said: dict[str, Any]) -> dict[str, Any]:
    """How the chunks in each of the weight's files are written."""
    outer = _objects(said.get("codecs"))
    found = outer[0].get("configuration") if _names(outer) == ["sharding_indexed"] else None
    inner = found if isinstance(found, dict) else {}
    for key in ("codecs", "index_codecs"):
        names = _names(_objects(inner.get(key)))
        if names != _CODECS:
            raise ValueError(
                f"its zarr.json has the codecs {_names(outer)}, and in them {names}, where a "
                f"native checkpoint has {_CODECS} in shards"
            )
    return inner


def _check_shape(shape: Any, chunk: Any) -> None:
    if not _are_counts(shape) or not _are_counts(chunk) or len(shape) != len(chunk):
        raise ValueError(f"its zarr.json says shape {shown(shape)} in chunks {shown(chunk)}")
    if any(side < min(size, _LEAST_SIDE) for size, side in zip(shape, chunk, strict=True)):
        raise ValueError(f"its chunks of {chunk} are too small for the shape {shape}")


def _objects(value: Any) -> list[dict[str, Any]]:
    """A list of objects, or an empty one."""
    return value if isinstance(value, list) and all(isinstance(v, dict) for v in value) else []


def _names(codecs: list[dict[str, Any]]) -> list[str]:
    return [str(codec.get("name"))[:40] for codec in codecs[:4]]


def _are_counts(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= _MAX_AXES
        and all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 2**63 for n in value)
    )


def _itemsize(dtype: Any) -> int:
    """Bytes of a number of this dtype; 1 for an unknown name, which the library refuses."""
    try:
        return np.dtype(str(dtype)).itemsize  # JAX has taught NumPy bfloat16 and its like
    except TypeError:
        return 1


def _bytes(weight: Path) -> int:
    chunks = weight / "c"
    if not chunks.is_dir():
        return 0
    return sum(entry.stat().st_size for entry in entries(chunks) if entry.is_file())
