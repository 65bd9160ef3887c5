"""Meta's Llama 3.1 405B in fp8: feed-forward matrices whose scales lie in files of their own.

`fp8_scales_N.pt` has rank N's scales, one for each output of its piece, by layer, matrix and rank:
`1_feed_forward.w1_0` (llama-models, models/llama3/quantization/loader.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

from llama_jax.checkpoint.blocks import Stored
from llama_jax.checkpoint.computed import ComputedTensor, DenseTensor, declared
from llama_jax.checkpoint.dtypes import DTYPES
from llama_jax.checkpoint.files.mapped import still_whole
from llama_jax.checkpoint.files.safe_paths import check_inside
from llama_jax.checkpoint.files.torch_file import read_state_dict
from llama_jax.checkpoint.meta.shards import Shards
from llama_jax.checkpoint.names import WeightNames
from llama_jax.tokenizer.folder import is_there

_FP8 = np.dtype(ml_dtypes.float8_e4m3fn)
_FLOATS = "get the model's bfloat16 files"


def read_fp8(
    shards: Shards, rows: list[WeightNames]
) -> tuple[Shards, dict[str, Stored], list[str]]:
    """The matrices of float8_e4m3fn among the rows, by Meta's name, and notes.

    ValueError names the matrix, or the file of scales, that is not whole.
    """
    folder, ranks = shards.files[0].parent, range(len(shards.files))
    if not any(_is_fp8(shards, row) for row in rows) and not is_there(_scales_file(folder, 0)):
        return shards, {}, []
    scales = [_scales_of(folder, rank) for rank in ranks]
    values: dict[str, Stored] = {}
    for row in rows:
        keys = [f"{_module(row)}_{rank}" for rank in ranks]
        scaled = keys[0] in scales[0] and row.meta in shards.pieces
        if not scaled and not _is_fp8(shards, row):
            continue
        found = [scales[rank].get(keys[rank]) for rank in ranks]
        try:
            values[row.meta] = _of_ranks(row, shards.pieces[row.meta], found)
        except ValueError as error:
            raise ValueError(f"{shards.files[0]}: {row.meta!r}: {error}; {_FLOATS}") from error
    notes = ["w2 of fp8 becomes an array: each file has scales of its own for all its outputs"]
    return shards, values, notes if len(ranks) > 1 and values else []


def _is_fp8(shards: Shards, row: WeightNames) -> bool:
    return any(piece.dtype == _FP8 for piece in shards.pieces.get(row.meta, ()))


def _module(row: WeightNames) -> str:
    """`1_feed_forward.w1` of `layers.1.feed_forward.w1.weight`."""
    return row.meta.removeprefix("layers.").removesuffix(".weight").replace(".", "_", 1)


def _scales_file(folder: Path, rank: int) -> Path:
    return folder / f"fp8_scales_{rank}.pt"


def _scales_of(folder: Path, rank: int) -> Mapping[str, np.ndarray]:
    file = _scales_file(folder, rank)
    if not is_there(file):
        raise ValueError(
            f"{folder} has float8 weights and no {file.name}, which holds their scales; download "
            "it beside them"
        )
    check_inside(folder, file)
    return read_state_dict(file)


def _of_ranks(
    row: WeightNames, pieces: tuple[np.ndarray, ...], scales: list[np.ndarray | None]
) -> Stored:
    """One matrix of all ranks' pieces [out, in], which w2 has cut along its inputs.

    Meta's loader casts the numbers to float8 whatever their dtype, once there are scales.
    """
    axis, (inputs, outputs) = int(row.path[-1] == "w2"), row.shape
    part = list(row.stored_shape)
    part[axis] //= len(pieces)
    for piece, scale in zip(pieces, scales, strict=True):
        if piece.dtype not in (_FP8, *DTYPES.values()) or list(piece.shape) != part:
            raise ValueError(
                f"a piece is {piece.dtype} of shape {list(piece.shape)}, where float8_e4m3fn "
                f"{part} is implied"
            )
        if scale is None or scale.size != part[0] or scale.dtype not in DTYPES.values():
            raise ValueError("its scales are missing in a file fp8_scales_N.pt, or not one a row")
    each = [np.ravel(scale).astype(np.float32) for scale in scales if scale is not None]
    if axis and len(pieces) > 1:

        def dense() -> np.ndarray:
            parts = (still_whole(p).astype(_FP8).T.astype(np.float32) for p in pieces)
            return np.concatenate([p * s for p, s in zip(parts, each, strict=True)])

        return DenseTensor((inputs, outputs), dense, "fp8")

    def value() -> dict[str, np.ndarray]:
        whole = [still_whole(piece).astype(_FP8, copy=False) for piece in pieces]
        bits = np.concatenate(whole).view(np.uint8)
        return {"bits": np.ascontiguousarray(bits.T), "scale": np.concatenate(each)}

    return ComputedTensor(declared("fp8", row.shape, None, np.float32), value, "fp8")
