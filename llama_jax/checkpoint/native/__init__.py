"""The project's own checkpoint: a directory that holds a model and says what it is.

checkpoint.json   the format's version, the dtype, the tokenizer's file, where it came from, and
                  the sha256 of every file but the weights' chunks, which have sums of their own
config.json       `Config.to_json`
weights/          Orbax: an array for each part of each weight, under the weight's path
tokenizer.model   or whatever the tokenizer's file was called, where there is one; and what goes
                  with it, of a Hugging Face folder's
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from llama_jax.checkpoint.dtypes import parse_dtype
from llama_jax.checkpoint.files.destination import writing
from llama_jax.checkpoint.native.links import linked
from llama_jax.checkpoint.native.manifest import (
    WEIGHTS,
    check_spelled,
    extras,
    is_native,
    read_config,
    read_info,
    write_manifest,
)
from llama_jax.checkpoint.native.reader import check_weights, is_part, read_weights, stored_weights
from llama_jax.checkpoint.native.values import Record, part_path, parts_to_store, record_of
from llama_jax.config import Config
from llama_jax.tokenizer import tokenizer_files
from llama_jax.weights.table import WeightPath, weight_table

if TYPE_CHECKING:
    from llama_jax.checkpoint.blocks import Tensor

__all__ = [
    "WEIGHTS",
    "Written",
    "is_native",
    "read_config",
    "read_info",
    "read_weights",
    "stored_weights",
    "write",
]
_KIND = "a llama_jax checkpoint"


@dataclasses.dataclass(frozen=True)
class Written:
    """What a conversion did."""

    path: Path
    tensors: int
    bytes: int
    """Bytes of the weights alone."""
    dtypes: tuple[str, ...]
    """The dtypes of the arrays, and the kinds of the other weights: ("float32", "int8")."""
    seconds: float
    warnings: tuple[str, ...]
    """Tensors with values that are not finite, or that a cast made infinite, and how many."""


def write(
    dst: str | os.PathLike[str],
    config: Config,
    tensors: Mapping[WeightPath, Tensor],
    *,
    dtype: Any = None,
    tokenizer: Path | None = None,
    source: Callable[[], Mapping[str, Any]] | None = None,
    progress: Callable[[int, int], None] | None = None,
    overwrite: bool = False,
    changed: Collection[WeightPath] | None = None,
) -> Written:
    """Writes a checkpoint, whole or not at all, a block of a tensor in memory at a time.

    `dtype` is one for all weights, None each one's own. What `source` gives, which is
    asked last, is kept in `checkpoint.json`.
    `progress` is told the bytes done and the bytes in all. `overwrite` replaces an older
    checkpoint of this project, once the new one is whole, and nothing else. Where that one holds
    the same numbers but for the parts that are `changed`, files are linked and not written.
    """
    from llama_jax.checkpoint.native import weight_files

    start, dst = time.monotonic(), Path(os.path.realpath(dst))
    check_spelled(dst)
    wanted = None if dtype is None else parse_dtype(dtype)
    records = _records(config, tensors, wanted)
    parts = _parts(config, tensors)
    weights = _planned(parts, records, wanted)
    total = sum(_nbytes(weight) for weight in weights.values())
    dtypes = tuple(sorted({np.dtype(weight.dtype).name for weight in weights.values()}))
    warnings: list[str] = []
    done = 0

    def moved(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    copies = tokenizer_files(tokenizer) if tokenizer else {}
    new = weights.keys() if changed is None else weights.keys() & changed
    size = sum(_nbytes(weights[path]) for path in new)
    with writing(dst, _KIND, extras if overwrite else None, size, copies) as partial:
        weight_files.describe(partial / WEIGHTS, weights)
        for path in weights:
            place = Path(WEIGHTS, weight_files.name(path))
            if path not in new and linked(partial / place, dst / place):
                moved(_nbytes(weights[path]))
                continue
            warnings += weight_files.fill(partial / WEIGHTS, path, parts[path], moved)
        write_manifest(
            partial,
            config,
            dtypes=dtypes,
            tokenizer=next(iter(copies), None),
            source=source,
            records={".".join(path): record._asdict() for path, record in records.items()},
        )
    return Written(
        path=dst,
        tensors=len(weights),
        bytes=total,
        dtypes=_told(config, weights, records),
        seconds=time.monotonic() - start,
        warnings=tuple(warnings),
    )


def _records(
    config: Config, tensors: Mapping[WeightPath, Any], dtype: np.dtype | None
) -> dict[WeightPath, Record]:
    """What the manifest says of the weights that are no arrays, once all are the model's."""
    check_weights(config, tensors, "the source")
    found = {path: record_of(tensors[path], dtype) for path in weight_table(config)}
    return {path: record for path, record in found.items() if record is not None}


def _told(
    config: Config, weights: Mapping[WeightPath, Any], records: Mapping[WeightPath, Record]
) -> tuple[str, ...]:
    """The dtypes of what was written, and the kinds."""
    whole = weight_table(config).keys() - records.keys()
    arrays = {np.dtype(weights[path].dtype).name for path in whole}
    return tuple(sorted(arrays | {record.kind for record in records.values()}))


def _parts(config: Config, tensors: Mapping[WeightPath, Any]) -> dict[WeightPath, Any]:
    """What is to be written, in the table's order: the parts of every weight."""
    return {
        part_path(path, name): part
        for path, row in weight_table(config).items()
        for name, part in parts_to_store(tensors[path], row.shape).items()
    }


def _planned(
    parts: Mapping[WeightPath, Any], records: Mapping[WeightPath, Record], dtype: np.dtype | None
) -> dict[WeightPath, jax.ShapeDtypeStruct]:
    """The shapes and dtypes to write. `dtype` is for arrays: a value's parts stay as they are."""
    planned = {}
    for path, part in parts.items():
        if isinstance(part, jax.Array) and not part.is_fully_addressable:
            raise ValueError(
                f"{'.'.join(path)} lies on the devices of several processes; gather it first"
            )
        own = np.dtype(part.dtype)
        planned[path] = jax.ShapeDtypeStruct(
            part.shape, own if dtype is None or is_part(path, records) else dtype
        )
    return planned


def _nbytes(weight: jax.ShapeDtypeStruct) -> int:
    return weight.size * np.dtype(weight.dtype).itemsize
