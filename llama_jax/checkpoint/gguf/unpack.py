"""GGUF's quantized blocks, unpacked: integer codes, and a scale and perhaps a minimum for a group.

A weight is `code * scale - minimum`. So each of ggml's types (ggml-common.h has the layouts) is one
function from bytes [blocks, bytes of a block] to `Unpacked`; nothing is rounded on the way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Unpacked(NamedTuple):
    """So many blocks of one type."""

    codes: Callable[[], np.ndarray]
    """Gives int8 [blocks, groups, group]: whole numbers, in the order of the weights. Whoever wants
    the scales alone does not wait for them."""
    scale: np.ndarray
    """float32 [blocks, groups, 1]."""
    minimum: np.ndarray | None
    """float32 [blocks, groups, 1], subtracted; None where the type has none."""

    def dense(self) -> np.ndarray:
        """The weights, float32 [blocks, groups, group]."""
        weights = self.codes().astype(np.float32)
        weights *= self.scale
        if self.minimum is not None:
            weights -= self.minimum
        return weights


_TABLE = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8
)
"""What the 16 codes of IQ4_NL and IQ4_XS stand for."""


def unpack_q8_0(raw: np.ndarray) -> Unpacked:
    return Unpacked(lambda: raw[:, 2:].view(np.int8)[:, None], _halves(raw[:, :2]), None)


def unpack_q4_0(raw: np.ndarray) -> Unpacked:
    return Unpacked(lambda: _nibbles(raw[:, 2:], 16) - np.int8(8), _halves(raw[:, :2]), None)


def unpack_q4_1(raw: np.ndarray) -> Unpacked:
    return Unpacked(lambda: _nibbles(raw[:, 4:], 16), _halves(raw[:, :2]), -_halves(raw[:, 2:4]))


def unpack_q5_0(raw: np.ndarray) -> Unpacked:
    codes = _nibbles(raw[:, 6:], 16) | _fifth_bits(raw[:, 2:6])
    return Unpacked(lambda: codes - np.int8(16), _halves(raw[:, :2]), None)


def unpack_q5_1(raw: np.ndarray) -> Unpacked:
    codes = _nibbles(raw[:, 8:], 16) | _fifth_bits(raw[:, 4:8])
    return Unpacked(lambda: codes, _halves(raw[:, :2]), -_halves(raw[:, 2:4]))


def unpack_q2_k(raw: np.ndarray) -> Unpacked:
    packed = raw[:, :16, None]
    scale = _halves(raw[:, 80:82]) * (packed & 15).astype(np.float32)
    minimum = _halves(raw[:, 82:84]) * (packed >> 4).astype(np.float32)
    return Unpacked(lambda: _pairs(raw[:, 16:80]).reshape(-1, 16, 16), scale, minimum)


def unpack_q3_k(raw: np.ndarray) -> Unpacked:
    bit = np.arange(8, dtype=np.uint8)[:, None]
    high = (raw[:, None, :32] >> bit & 1).view(np.int8)  # 1 where nothing is subtracted
    codes = _pairs(raw[:, 32:96]).reshape(-1, 8, 32) + (high << 2) - np.int8(4)
    low = raw[:, 96:104]
    low = np.concatenate([low & 15, low >> 4], 1)
    shift = np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    top = (raw[:, None, 104:108] >> shift & 3).reshape(-1, 16)
    scales = (low | top << 4).astype(np.int8) - np.int8(32)
    scale = _halves(raw[:, 108:110]) * scales[..., None].astype(np.float32)
    return Unpacked(lambda: codes.reshape(-1, 16, 16), scale, None)


def unpack_q4_k(raw: np.ndarray) -> Unpacked:
    scale, minimum = _six_bits(raw)
    return Unpacked(lambda: _nibbles(raw[:, 16:], 32).reshape(-1, 8, 32), scale, minimum)


def unpack_q5_k(raw: np.ndarray) -> Unpacked:
    scale, minimum = _six_bits(raw)
    bit = np.arange(8, dtype=np.uint8)[:, None]
    high = (raw[:, None, 16:48] >> bit & 1) << 4
    codes = _nibbles(raw[:, 48:], 32).reshape(-1, 8, 32) | high.view(np.int8)
    return Unpacked(lambda: codes, scale, minimum)


def unpack_q6_k(raw: np.ndarray) -> Unpacked:
    low = _nibbles(raw[:, :128], 64).reshape(-1, 2, 4, 32)
    high = _pairs(raw[:, 128:192]).reshape(-1, 2, 4, 32)
    codes = (low | high << 4) - np.int8(32)
    scales = raw[:, 192:208].view(np.int8)[..., None].astype(np.float32)
    return Unpacked(lambda: codes.reshape(-1, 16, 16), _halves(raw[:, 208:210]) * scales, None)


def unpack_iq4_nl(raw: np.ndarray) -> Unpacked:
    return Unpacked(lambda: _TABLE[_nibbles(raw[:, 2:], 16)], _halves(raw[:, :2]), None)


def unpack_iq4_xs(raw: np.ndarray) -> Unpacked:
    low = np.stack([raw[:, 4:8] & 15, raw[:, 4:8] >> 4], -1).reshape(-1, 8)
    shift = np.arange(0, 16, 2, dtype=np.uint16)
    high = (raw[:, 2:4].copy().view("<u2") >> shift & 3).astype(np.uint8)
    scales = (low | high << 4).astype(np.int8) - np.int8(32)
    scale = _halves(raw[:, :2]) * scales[..., None].astype(np.float32)
    return Unpacked(lambda: _TABLE[_nibbles(raw[:, 8:], 16).reshape(-1, 8, 32)], scale, None)


def _halves(raw: np.ndarray) -> np.ndarray:
    """A float16 a block, as float32 [blocks, 1, 1]."""
    return raw.view("<f2").astype(np.float32)[..., None]


def _nibbles(raw: np.ndarray, run: int) -> np.ndarray:
    """Codes of 4 bits, int8 [blocks, runs, 2 * run]: of each run of bytes the low, then the high.

    Bytes 0x10 0x32 in runs of 2 are the codes 0 2 1 3. A run is a multiple of 8, and eight bytes
    are taken at once.
    """
    eight = raw.view(np.uint64).reshape(len(raw), -1, run // 8)
    codes = np.empty((*eight.shape[:2], 2, run // 8), np.uint64)
    low = np.uint64(0x0F0F0F0F0F0F0F0F)
    for i in range(run // 8):  # NumPy is slow over a short last axis
        codes[:, :, 0, i] = eight[:, :, i] & low
        codes[:, :, 1, i] = eight[:, :, i] >> np.uint64(4) & low
    return codes.view(np.int8).reshape(len(raw), -1, 2 * run)


def _pairs(raw: np.ndarray) -> np.ndarray:
    """Codes of 2 bits, int8 [blocks, runs, 4, 32]: of each 32 bytes the lowest bits first."""
    shift = np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    return (raw.reshape(len(raw), -1, 1, 32) >> shift & 3).view(np.int8)


def _fifth_bits(raw: np.ndarray) -> np.ndarray:
    """The fifth bit of each of 32 codes, int8 [blocks, 1, 32], from 4 bytes a block."""
    bits = np.unpackbits(raw, axis=1, bitorder="little")
    return (bits << 4).view(np.int8)[:, None]


def _six_bits(raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scale and minimum of each of the 8 groups of a Q4_K or Q5_K block, float32 [blocks, 8, 1].

    12 bytes hold 16 numbers of 6 bits: of the first four groups in the low bits of bytes 0 to 3
    (scales) and 4 to 7 (minima), of the others in the nibbles of the last four and the bits left.
    """
    a, b, c = raw[:, 4:8], raw[:, 8:12], raw[:, 12:16]
    scales = np.concatenate([a & 63, c & 15 | a >> 6 << 4], 1)[..., None]
    minima = np.concatenate([b & 63, c >> 4 | b >> 6 << 4], 1)[..., None]
    d, least = _halves(raw[:, :2]), _halves(raw[:, 2:4])
    return d * scales.astype(np.float32), least * minima.astype(np.float32)
