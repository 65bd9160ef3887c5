"""GGUF's blocks as the house's own quantized weights, without another rounding.

The codes stay as they are. Types of 4-bit codes in groups of 32 become `Int4`, all others `Int8`. A
scale that is a float16 in the file stays one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from llama_jax.checkpoint.blocks import ReadByPart, copy_in_bands
from llama_jax.checkpoint.gguf.tensors import QuantizedTensor, RawTensor, in_bands
from llama_jax.checkpoint.placing import Index
from llama_jax.weights.int4 import GROUP, MIDDLE, WORDS, Int4
from llama_jax.weights.int8 import Int8
from llama_jax.weights.weight import Layout

_FOUR_BITS = {"Q4_0": MIDDLE, "Q4_1": 0, "Q4_K": 0}
"""What makes a type's codes numbers from 0 to 15."""
_IN_HALVES = {"Q4_0", "Q4_1"}
"""The types whose blocks end with 16 bytes of two codes each."""
_HALVES = {"Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "IQ4_NL"}
"""The types whose blocks begin with a scale in float16, and a minimum if they have one."""
_GROUPS = {"Q2_K": 16, "Q3_K": 16, "Q6_K": 16}
_MINIMA = {"Q4_1", "Q5_1", "Q2_K", "Q4_K", "Q5_K"}


@dataclasses.dataclass(frozen=True)
class RepackedTensor(QuantizedTensor):
    """A matrix [in, out] that is a value of kind "int8" or "int4"; read by part, it is dense."""

    @property
    def kind(self) -> str:
        return Int4.kind if self.stored_as in _FOUR_BITS else Int8.kind

    def constants(self) -> dict[str, Any]:
        return {}

    def parts(self) -> dict[str, _Part]:
        return {
            name: _Part(tuple(part.shape), np.dtype(part.dtype), name, self.raw)
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
    """Words [4, in / 32, out], or integers, scales or minima [in / n, out]."""

    shape: tuple[int, ...]
    dtype: np.dtype
    name: str
    raw: RawTensor

    def read(self, index: Index, out: np.ndarray) -> None:
        """Reads the part under `index` into `out` from the blocks that hold it."""
        *word, groups, rows = index
        each, block = self.raw.shape[1] // self.shape[-2], self.raw.kind.block
        first = groups.start * each // block * block // each  # a block may hold several groups
        columns = slice(first * each, groups.stop * each)
        wanted = slice(groups.start - first, groups.stop - first)
        stored = out if word else out[None]

        def fill(band: slice) -> None:
            planes = self._planes(band, columns)[word[0] if word else slice(None)]
            for plane, target in zip(planes, stored, strict=True):
                part = plane.reshape(band.stop - band.start, -1)[:, wanted]
                copy_in_bands(part, target.T[band.start - rows.start : band.stop - rows.start])

        in_bands(self.raw, rows, fill)

    def _planes(self, rows: slice, columns: slice) -> Sequence[np.ndarray]:
        """This part of some rows: one array [rows, groups], or one of each word."""
        kind = self.raw.kind.name
        if self.name == "words" and kind in _IN_HALVES:
            return _words_of_halves(self._blocks(rows, columns)[..., -GROUP // 2 :])
        if self.name in ("scale", "minimum") and kind in _HALVES:
            at = 2 * (self.name == "minimum")
            return [self._blocks(rows, columns)[..., at : at + 2].view("<f2")[..., 0]]
        blocks = self.raw.unpacked(rows, columns)
        if self.name == "words":
            return list(_words(blocks.codes().view(np.uint8) + np.uint8(_FOUR_BITS[kind])))
        if self.name == "values":
            return [blocks.codes()]
        found = blocks.scale if self.name == "scale" else -np.asarray(blocks.minimum)
        return [found.astype(self.dtype)]

    def _blocks(self, rows: slice, columns: slice) -> np.ndarray:
        """The bytes of these blocks, [rows, blocks of a row, bytes]."""
        found = self.raw.blocks(rows, columns)
        return found.reshape(rows.stop - rows.start, -1, found.shape[1])


def _words(numbers: np.ndarray) -> np.ndarray:
    """Numbers from 0 to 15, uint8 [..., 32], as the four words of each 32: int32 [4, n].

    Two neighbours are one integer of 16 bits, `a + 256 b`; `a + 16 b` is the byte that they share.
    """
    two = numbers.view("<u2")
    shared = (two | two >> np.uint16(4)).astype(np.uint8)
    return shared.view("<i4").reshape(-1, WORDS).T


def _words_of_halves(raw: np.ndarray) -> list[np.ndarray]:
    """The same of bytes [rows, n, 16] with numbers 0 to 15 in their low halves, 16 to 31 above.

    Four arrays [rows, n], which in memory are [n, rows], as a weight's words are.
    """
    # Turned once, by 16 bytes: NumPy has no other number as long.
    both = np.ascontiguousarray(raw.view("<c16")[..., 0].T).view("<u2")
    low = both & np.uint16(0x0F0F)
    low |= low >> np.uint16(4)
    both &= np.uint16(0xF0F0)
    both >>= np.uint16(4)
    both |= both >> np.uint16(4)
    words = (pairs.astype(np.uint8).view("<i4") for pairs in (low, both))
    return [each[:, at::2].T for each in words for at in (0, 1)]
