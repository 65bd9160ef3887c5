"""The weights of a native checkpoint: checked against its config, and read onto devices."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from llama_jax.checkpoint.dtypes import DTYPES, parse_dtype
from llama_jax.checkpoint.files.safe_paths import check_tree
from llama_jax.checkpoint.native.manifest import INFO, WEIGHTS, read_info, weights_folder
from llama_jax.checkpoint.native.values import (
    Record,
    check_parts,
    made,
    part_path,
    part_shardings,
    shapes_of,
)
from llama_jax.checkpoint.placing import default_sharding
from llama_jax.config import Config
from llama_jax.tokenizer.foreign import in_short
from llama_jax.weights.params import nested, true_shape
from llama_jax.weights.table import WeightPath, weight_table
from llama_jax.weights.weight import is_value, parts_of, read_dtype


@in_short()
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
            how[part_path(path, part)] = sharding, read_dtype(stored[path], part, wanted)
    arrays = weight_files.read(Path(src) / WEIGHTS, how)
    records = read_records(src)
    for path, record in records.items():
        parts = {name: arrays.pop(part_path(path, name)) for name in parts_of(stored[path])}
        arrays[path] = made(record, parts, path, wanted)
    return nested({path: arrays[path] for path in weight_table(config)})


@in_short()
def stored_weights(src: str | os.PathLike[str], config: Config) -> dict[WeightPath, Any]:
    """Every weight as it lies there, checked against `config`: shapes in place of arrays."""
    from llama_jax.checkpoint.native import weight_files

    records = read_records(src)
    directory = weights_folder(src)
    check_tree(Path(src), directory)
    arrays = weight_files.stored(directory)
    weights = {path: array for path, array in arrays.items() if not is_part(path, records)}
    for path, record in records.items():
        weights[path] = made(record, shapes_of(arrays, path), path)
        check_parts(weights[path], path)
    check_weights(config, weights, str(directory))
    return weights


def read_records(src: str | os.PathLike[str]) -> dict[WeightPath, Record]:
    """What `checkpoint.json` says of the weights that are no arrays."""
    where, said = Path(src) / INFO, read_info(src).get("weights", {})
    try:
        return {tuple(name.split(".")): Record(**fields) for name, fields in said.items()}
    except (AttributeError, TypeError) as error:
        raise ValueError(f"{where} has damaged weights: {error}") from error


def is_part(path: WeightPath, records: Mapping[WeightPath, Record]) -> bool:
    """Whether an array at this path is a part of a weight."""
    return path[:-1] in records


def check_weights(config: Config, found: Mapping[WeightPath, Any], where: str) -> None:
    """ValueError where weights are missing, unknown, or of another shape than the model's."""
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
