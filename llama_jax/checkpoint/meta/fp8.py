"""Meta's Llama 3.1 405B in fp8: feed-forward matrices whose scales lie in files of their own.

`fp8_scales_N.pt` has rank N's, one for each output of its piece, as `1_feed_forward.w1_0`: layer,
matrix, rank (llama-models, models/llama3/quantization/loader.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

from llama_jax.checkpoint.blocks import Stored
from llama_jax.checkpoint.computed import ComputedTensor, DenseTensor, declared
from llama_jax.checkpoint.dtypes import DTYPES
from llama_jax.checkpoint.files.safe_paths import check_inside
from llama_jax.checkpoint.files.torch_file import read_state_dict
from llama_jax.checkpoint.meta.shards import Shards
from llama_jax.checkpoint.names import WeightNames

_FP8 = np.dtype(ml_dtypes.float8_e4m3fn)
_FLOATS = "get the model's bfloat16 files"


def read_fp8(
    shards: Shards, rows: list[WeightNames]
) -> tuple[Shards, dict[str, Stored], list[str]]:
    """The matrices of float8_e4m3fn among the rows, by Meta's name, and notes.

    ValueError names the matrix, or the file of scales, that is not whole.
    """
    rows = [r for r in rows if any(p.dtype == _FP8 for p in shards.pieces.get(r.meta, ()))]
    if not rows:
        return shards, {}, []
    ranks = range(len(shards.files))
    scales = [_scales_of(shards.files[0].parent, rank) for rank in ranks]
    values: dict[str, Stored] = {}
    for row in rows:
        module = row.meta.removeprefix("layers.").removesuffix(".weight").replace(".", "_", 1)
        found = [scales[rank].get(f"{module}_{rank}") for rank in ranks]
        try:
            values[row.meta] = _of_ranks(row, shards.pieces[row.meta], found)
        except ValueError as error:
            raise ValueError(f"{shards.files[0]}: {row.meta!r}: {error}; {_FLOATS}") from error
    notes = ["w2 of fp8 becomes an array: each file has scales of its own for all its outputs"]
    return shards, values, notes if len(ranks) > 1 else []


def _scales_of(folder: Path, rank: int) -> Mapping[str, np.ndarray]:
    file = folder / f"fp8_scales_{rank}.pt"
    if not file.is_file():
        raise ValueError(
            f"{folder} has float8 weights and no {file.name}, which holds their scales; download "
            "it beside them"
        )
    check_inside(folder, file)
    return read_state_dict(file)


def _of_ranks(
    row: WeightNames, pieces: tuple[np.ndarray, ...], scales: list[np.ndarray | None]
) -> Stored:
    """One matrix of all ranks' pieces [out, in], which w2 has cut along its inputs."""
    axis, (inputs, outputs) = int(row.path[-1] == "w2"), row.shape
    part = list(row.stored_shape)
    part[axis] //= len(pieces)
    for piece, scale in zip(pieces, scales, strict=True):
        if piece.dtype != _FP8 or list(piece.shape) != part:
            raise ValueError(
                f"a piece is {piece.dtype} of shape {list(piece.shape)}, where float8_e4m3fn "
                f"{part} is implied"
            )
        if scale is None or scale.size != part[0] or scale.dtype not in DTYPES.values():
            raise ValueError("its scales are missing in a file fp8_scales_N.pt, or not one a row")
    each = [np.ravel(scale).astype(np.float32) for scale in scales if scale is not None]
    if axis and len(pieces) > 1:

        def dense() -> np.ndarray:
            parts = [p.T.astype(np.float32) * s for p, s in zip(pieces, each, strict=True)]
            return np.concatenate(parts)

        return DenseTensor((inputs, outputs), dense, "fp8")

    def value() -> dict[str, np.ndarray]:
        bits = np.concatenate([piece.view(np.uint8) for piece in pieces])
        return {"bits": np.ascontiguousarray(bits.T), "scale": np.concatenate(each)}

    return ComputedTensor(declared("fp8", row.shape, None, np.float32), value, "fp8")
