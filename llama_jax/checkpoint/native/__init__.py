"""The project's own checkpoint: a directory that holds a model and says what it is.

checkpoint.json   the format's version, the dtype, the tokenizer's file, where it came from
config.json       `Config.to_json`
weights/          Orbax: one array per weight, under the names of `names.table`
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

from llama_jax.checkpoint import names
from llama_jax.checkpoint.dtypes import DTYPES, parse_dtype
from llama_jax.checkpoint.files.destination import writing
from llama_jax.checkpoint.files.safe_paths import check_tree
from llama_jax.checkpoint.names import WeightPath
from llama_jax.checkpoint.native.manifest import (
    WEIGHTS,
    extras,
    is_native,
    read_config,
    read_info,
    write_manifest,
)
from llama_jax.checkpoint.placement import default_sharding
from llama_jax.config import Config
from llama_jax.tokenizer import tokenizer_files
from llama_jax.weights.params import nested

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
    weights = _planned(config, tensors, dtype)
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
            warnings += weight_files.fill(partial / WEIGHTS, path, tensors[path], moved)
        write_manifest(
            partial,
            config,
            dtypes=dtypes,
            tokenizer=tokenizer.name if tokenizer else None,
            source=source,
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
    """The weights as a nested dict of arrays, read straight into their shardings and dtype.

    Without `shardings` (by weight path) everything goes to the default device. Memory: the weights
    once, and a few blocks; every shape is checked before any weight is read.
    """
    from llama_jax.checkpoint.native import weight_files

    directory = Path(src) / WEIGHTS
    wanted = None if dtype is None else parse_dtype(dtype)
    stored = stored_weights(src, config)
    if shardings is None:
        shardings = dict.fromkeys(stored, default_sharding())
    paths = [weight.path for weight in names.table(config)]
    how = {path: (shardings[path], wanted or stored[path].dtype) for path in paths}
    return nested(weight_files.read(directory, how))


def stored_weights(
    src: str | os.PathLike[str], config: Config
) -> dict[WeightPath, jax.ShapeDtypeStruct]:
    """Every weight's shape and dtype as it lies there, checked against `config`; none is read."""
    from llama_jax.checkpoint.native import weight_files

    read_info(src)
    directory = Path(src) / WEIGHTS
    if not directory.is_dir():
        raise ValueError(f"{src} has no {WEIGHTS}/; the checkpoint is incomplete, write it again")
    check_tree(Path(src), directory)
    stored = weight_files.stored(directory)
    _check_weights(config, stored, str(directory))
    return stored


def _planned(
    config: Config, tensors: Mapping[WeightPath, Any], dtype: Any
) -> dict[WeightPath, jax.ShapeDtypeStruct]:
    """What is to be written, in the table's order, once it is known to be the model's."""
    _check_weights(config, tensors, "the source")
    wanted = None if dtype is None else parse_dtype(dtype)
    for path, tensor in tensors.items():
        if isinstance(tensor, jax.Array) and not tensor.is_fully_addressable:
            raise ValueError(
                f"{'.'.join(path)} lies on the devices of several processes; gather it first"
            )
    return {
        w.path: jax.ShapeDtypeStruct(w.shape, wanted or np.dtype(tensors[w.path].dtype))
        for w in names.table(config)
    }


def _check_weights(config: Config, found: Mapping[WeightPath, Any], where: str) -> None:
    expected = {weight.path: weight.shape for weight in names.table(config)}
    if missing := [path for path in expected if path not in found]:
        raise ValueError(f"{where} lacks {_some(missing)} of the {len(expected)} weights")
    if unknown := [path for path in found if path not in expected]:
        raise ValueError(f"{where} has {_some(unknown)}, which the config does not know")
    for path, shape in expected.items():
        is_shape, is_dtype = tuple(found[path].shape), np.dtype(found[path].dtype)
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
