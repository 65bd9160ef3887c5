"""bitsandbytes' numbers of 4 bits: a table of 16, and a scale for each block of neighbours."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from llama_jax.checkpoint.files.mapped import still_whole
from llama_jax.checkpoint.huggingface.packed import Tensors

_STATE = "weight.quant_state.bitsandbytes__"
_MAX_STATE = 2**16
"""Bytes of the JSON beside a matrix; bitsandbytes writes about 150."""


def nf4(t: Tensors, shape: tuple[int, int]) -> Callable[[], np.ndarray]:
    """What reads a matrix [out, in] as float32: `table[code] * absmax[block]`.

    The codes lie two in a byte, the first in its high half, over the rows one after another. Where
    the scales are quantized too (nested), each is `table8[byte] * absmax8[block of 256] + offset`.
    """
    state = _state(t)
    size, block = shape[0] * shape[1], state.get("blocksize")
    if type(block) is not int or not 0 < block <= 2**16 or list(state.get("shape", ())) != [*shape]:
        raise ValueError(f"its quant_state does not describe a matrix {list(shape)} in blocks")
    count = -(-size // block)
    scales, table = t.get("weight.absmax"), t.get("weight.quant_map")
    if t["weight"].size != -(-size // 2) or t["weight"].dtype != np.uint8:
        raise ValueError(f"its {t['weight'].size:,} bytes are not two codes each of {list(shape)}")
    if scales is None or scales.size != count or table is None or table.size != 16:
        raise ValueError(f"its absmax and quant_map are not {count:,} scales and 16 numbers")

    each = _scales(t, np.ravel(scales), state)

    def dense() -> np.ndarray:
        raw = np.ravel(t["weight"])
        codes = np.stack([raw >> 4, raw & 15], 1).reshape(-1)[:size]
        weights = np.ravel(still_whole(table)).astype(np.float32)[codes]
        return (weights * np.repeat(each(), block)[:size]).reshape(shape)

    return dense


def _state(t: Tensors) -> Mapping[str, Any]:
    """The JSON that lies beside the weight as bytes."""
    for kind in ("nf4", "fp4"):
        if (raw := t.get(_STATE + kind)) is not None:
            if raw.size > _MAX_STATE:
                break
            try:
                found = json.loads(np.ravel(raw).astype(np.uint8).tobytes())
            except (ValueError, RecursionError):
                break
            if isinstance(found, dict):
                return found
    raise ValueError("its quant_state is missing, no JSON or too long, so its blocks are unknown")


def _scales(t: Tensors, scales: np.ndarray, state: Mapping[str, Any]) -> Callable[[], np.ndarray]:
    """What reads the scale of each block, once all that it takes is known to be there."""
    if scales.dtype != np.uint8:
        return lambda: still_whole(scales).astype(np.float32)
    table, outer = (np.ravel(t[f"weight.nested_{name}"]) for name in ("quant_map", "absmax"))
    block, offset = state.get("nested_blocksize"), state.get("nested_offset")
    if type(block) is not int or not 0 < block <= 2**16 or not isinstance(offset, int | float):
        raise ValueError("its quant_state says no nested_blocksize and nested_offset")
    if outer.size != -(-scales.size // block) or table.size != 256:
        raise ValueError("its nested_absmax and nested_quant_map do not fit its absmax")

    def read() -> np.ndarray:
        each = np.repeat(still_whole(outer).astype(np.float32), block)[: scales.size]
        numbers = still_whole(table).astype(np.float32)[still_whole(scales)]
        return numbers * each + np.float32(offset)

    return read
