"""GGUF's blocks as the house's own quantized weights, without another rounding.

The codes stay as they are. Types of 4-bit codes in groups of 32 become `Int4`, all others `Int8`. A
scale that is a float16 in the file stays one.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from llama_jax.checkpoint.blocks import ReadByPart, copy_in_bands
from llama_jax.checkpoint.gguf.tensors import QuantizedTensor, RawTensor, bands
from llama_jax.checkpoint.placing import Index
from llama_jax.weights.int4 import GROUP, MIDDLE, WORDS, Int4
from llama_jax.weights.int8 import Int8
from llama_jax.weights.weight import Layout

_FOUR_BITS = {"Q4_0": MIDDLE, "Q4_1": 0, "Q4_K": 0}
"""What makes a type's codes numbers from 0 to 15."""
_HALVES = {"Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "IQ4_NL"}
"""The types whose scale is a float16 of the file, and no product."""
_GROUPS = {"Q2_K": 16, "Q3_K": 16, "Q6_K": 16}
_MINIMA = {"Q4_1", "Q5_1", "Q2_K", "Q4_K", "Q5_K"}

Parts = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class RepackedTensor(QuantizedTensor):
    """A matrix [in, out] that is a value of kind "int8" or "int4"; read by part, it is dense."""

    value: Callable[[], Parts]
    """All of its parts, computed once for those that are read one after another."""

    @property
    def kind(self) -> str:
        return Int4.kind if self.stored_as in _FOUR_BITS else Int8.kind

    def constants(self) -> dict[str, Any]:
        return {}

    def parts(self) -> dict[str, _Part]:
        return {
            name: _Part(tuple(part.shape), np.dtype(part.dtype), name, self.value)
            for name, part in self._shapes().parts().items()
        }

    def layout(self) -> Layout:
        return self._shapes().layout()

    def _shapes(self) -> Any:
        """The value, with shapes in place of arrays."""
        inputs, outputs = self.shape
        kind, shape = self.stored_as, jax.ShapeDtypeStruct
        scales = (inputs // _GROUPS.get(kind, GROUP), outputs)
        scale = shape(scales, np.float16 if kind in _HALVES else np.float32)
        parts = {"scale": scale, **({"minimum": scale} if kind in _MINIMA else {})}
        if kind in _FOUR_BITS:
            words = shape((WORDS, inputs // GROUP, outputs), np.int32)
            return Int4.from_parts({"words": words, **parts}, {}, self.dtype)
        return Int8.from_parts({"values": shape(self.shape, np.int8), **parts}, {}, self.dtype)


@dataclasses.dataclass(frozen=True)
class _Part(ReadByPart):
    shape: tuple[int, ...]
    dtype: np.dtype
    name: str
    value: Callable[[], Parts]

    def read(self, index: Index, out: np.ndarray) -> None:
        out[...] = self.value()[self.name][index]


def repacking() -> Callable[[RawTensor], RepackedTensor]:
    """Makes values of one file's matrices [out, in]; they share memory for one weight's parts."""
    last = functools.lru_cache(maxsize=1)(_parts)

    def repacked(raw: RawTensor) -> RepackedTensor:
        value = functools.partial(last, raw)
        return RepackedTensor(raw, transposed=True, value=value)

    return repacked


def _parts(raw: RawTensor) -> Parts:
    """The parts of a value, from all of a matrix's blocks, bands of outputs side by side."""
    shapes = RepackedTensor(raw, True, dict)._shapes().parts()
    found = {name: np.empty(part.shape, part.dtype) for name, part in shapes.items()}
    inputs = raw.shape[1]

    def fill(rows: slice) -> None:
        blocks = raw.unpacked(rows, slice(0, inputs))
        codes = blocks.codes.reshape(-1, inputs)
        if "words" in found:
            words = _words((codes + np.int8(_FOUR_BITS[raw.kind.name])).view(np.uint8))
            copy_in_bands(words, found["words"].transpose(2, 1, 0)[rows])
        else:
            copy_in_bands(codes, found["values"].T[rows])
        found["scale"].T[rows] = blocks.scale.reshape(len(codes), -1)
        if blocks.minimum is not None:
            found["minimum"].T[rows] = -blocks.minimum.reshape(len(codes), -1)

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # NumPy computes without the GIL
        list(pool.map(fill, bands(raw, slice(0, raw.shape[0]))))
    return found


def _words(numbers: np.ndarray) -> np.ndarray:
    """Numbers from 0 to 15, uint8 [out, in], as the words of `Int4`, [out, in / 32, 4].

    Eight numbers are one integer, whose halves meet three times. That takes a fifth of the time of
    `packed`, which turns the bytes around first.
    """
    eight = numbers.view("<u8")
    for bits, kept in ((4, 0x00FF00FF00FF00FF), (8, 0x0000FFFF0000FFFF), (16, 0xFFFFFFFF)):
        eight = (eight | eight >> np.uint64(bits)) & np.uint64(kept)
    return eight.astype("<u4").view(np.int32).reshape(len(numbers), -1, WORDS)
