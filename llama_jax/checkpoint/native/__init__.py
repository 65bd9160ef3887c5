"""The project's own checkpoint: a directory that holds a model and says what it is.

checkpoint.json   the format's version, the dtype, the tokenizer's file, where it came from
config.json       `Config.to_json`
weights/          Orbax: an array for each part of each weight, under the weight's path
tokenizer.model   or whatever the tokenizer's file was called, where there is one; and what goes
                  with it, of a Hugging Face folder's
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from llama_jax.checkpoint.dtypes import DTYPES, parse_dtype
from llama_jax.checkpoint.files.destination import writing
from llama_jax.checkpoint.files.safe_paths import check_tree
from llama_jax.checkpoint.native.manifest import (
    INFO,
    WEIGHTS,
    extras,
    is_native,
    read_config,
    read_info,
    write_manifest,
)
from llama_jax.checkpoint.native.values import (
    Record,
    made,
    part_path,
    part_shardings,
    parts_to_store,
    record_of,
    shapes_of,
)
from llama_jax.checkpoint.placement import default_sharding
from llama_jax.config import Config
from llama_jax.tokenizer import tokenizer_files
from llama_jax.weights.params import nested, true_shape
from llama_jax.weights.table import WeightPath, weight_table
from llama_jax.weights.weight import is_value, parts_of

if TYPE_CHECKING:
    from llama_jax.checkpoint.blocks import Tensor

__all__ = [
    "WEIGHTS",
    "Written",
    "is_native",
    "read_config",
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
    """Of the weights alone."""
    dtypes: tuple[str, ...]
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
    source: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
    overwrite: bool = False,
) -> Written:
    """Writes a checkpoint, whole or not at all, a block of a tensor in memory at a time.

    `dtype` is one for all weights, None each one's own. `source` is kept in `checkpoint.json`.
    `progress` is told the bytes done and the bytes in all. `overwrite` replaces an older
    checkpoint of this project, once the new one is whole, and nothing else.
    """
    from llama_jax.checkpoint.native import weight_files

    start, dst = time.monotonic(), Path(os.path.realpath(dst))
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
    with writing(dst, _KIND, extras if overwrite else None, total, copies) as partial:
        weight_files.describe(partial / WEIGHTS, weights)
        for path in weights:
            warnings += weight_files.fill(partial / WEIGHTS, path, parts[path], moved)
        write_manifest(
            partial,
            config,
            dtypes=dtypes,
            tokenizer=tokenizer.name if tokenizer else None,
            source=source,
            records={".".join(path): record._asdict() for path, record in records.items()},
        )
    return Written(
        path=dst,
        tensors=len(weights),
        bytes=total,
        dtypes=dtypes,
        seconds=time.monotonic() - start,
        warnings=tuple(warnings),
    )


def read_weights(
    src: str | os.PathLike[str],
    config: Config,
    *,
    shardings: Mapping[WeightPath, jax.sharding.Sharding] | None = None,
    dtype: Any = None,
) -> dict[str, Any]:
    """The weights as nested dicts, read straight into their shardings and dtype.

    Without `shardings` (by weight path) everything goes to the default device. Memory: the weights
    once, and a few blocks; every shape is checked before any weight is read.
    """
    from llama_jax.checkpoint.native import weight_files

    wanted = None if dtype is None else parse_dtype(dtype)
    stored = stored_weights(src, config)
    if shardings is None:
        shardings = dict.fromkeys(stored, default_sharding())
    how: dict[WeightPath, tuple[jax.sharding.Sharding, np.dtype]] = {}
    for path, row in weight_table(config).items():
        for part, sharding in part_shardings(stored[path], row.shape, shardings[path], path):
            found = parts_of(stored[path])[part]
            own = np.dtype(found.dtype)  # a value's parts keep theirs
            how[part_path(path, part)] = sharding, own if is_value(stored[path]) else wanted or own
    arrays = weight_files.read(Path(src) / WEIGHTS, how)
    records = read_records(src)
    for path, record in records.items():
        parts = {name: arrays.pop(part_path(path, name)) for name in parts_of(stored[path])}
        arrays[path] = made(record, parts, path, wanted)
    return nested({path: arrays[path] for path in weight_table(config)})


def stored_weights(src: str | os.PathLike[str], config: Config) -> dict[WeightPath, Any]:
    """Every weight as it lies there, checked against `config`: shapes in place of arrays."""
    from llama_jax.checkpoint.native import weight_files

    records = read_records(src)
    directory = Path(src) / WEIGHTS
    if not directory.is_dir():
        raise ValueError(f"{src} has no {WEIGHTS}/; the checkpoint is incomplete, write it again")
    check_tree(Path(src), directory)
    arrays = weight_files.stored(directory)
    weights = {path: array for path, array in arrays.items() if not _is_part(path, records)}
    for path, record in records.items():
        weights[path] = made(record, shapes_of(arrays, path), path)
    _check_weights(config, weights, str(directory))
    return weights


def read_records(src: str | os.PathLike[str]) -> dict[WeightPath, Record]:
    """What `checkpoint.json` says of the weights that are no arrays."""
    where, said = Path(src) / INFO, read_info(src).get("weights", {})
    try:
        return {tuple(name.split(".")): Record(**fields) for name, fields in said.items()}
    except (AttributeError, TypeError) as error:
        raise ValueError(f"{where} has damaged weights: {error}") from error


def _is_part(path: WeightPath, records: Mapping[WeightPath, Record]) -> bool:
    return path[:-1] in records


def _records(
    config: Config, tensors: Mapping[WeightPath, Any], dtype: np.dtype | None
) -> dict[WeightPath, Record]:
    """What the manifest says of the weights that are no arrays, once all are the model's."""
    _check_weights(config, tensors, "the source")
    found = {path: record_of(tensors[path], dtype) for path in weight_table(config)}
    return {path: record for path, record in found.items() if record is not None}


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
            part.shape, own if dtype is None or _is_part(path, records) else dtype
        )
    return planned


def _check_weights(config: Config, found: Mapping[WeightPath, Any], where: str) -> None:
    expected = {path: row.shape for path, row in weight_table(config).items()}
    if missing := [path for path in expected if path not in found]:
        raise ValueError(f"{where} lacks {_some(missing)} of the {len(expected)} weights")
    if unknown := [path for path in found if path not in expected]:
        raise ValueError(f"{where} has {_some(unknown)}, which the config does not know")
    for path, shape in expected.items():
        is_shape, is_dtype = tuple(found[path].shape), np.dtype(found[path].dtype)
        if is_value(found[path]):  # on a mesh it may be padded, as an array here is not
            is_shape = true_shape(config, path, is_shape)
        if is_shape != shape:
            raise ValueError(
                f"{'.'.join(path)} in {where} has shape {is_shape}; the config says {shape}"
            )
        if is_dtype not in DTYPES.values():
            raise ValueError(
                f"{'.'.join(path)} in {where} is {is_dtype}; a weight is one of {', '.join(DTYPES)}"
            )


def _some(paths: list[WeightPath]) -> str:
    shown = ", ".join(".".join(path) for path in paths[:4])
    return shown if len(paths) <= 4 else f"{shown} and {len(paths) - 4} more"


def _nbytes(weight: jax.ShapeDtypeStruct) -> int:
    return weight.size * np.dtype(weight.dtype).itemsize
