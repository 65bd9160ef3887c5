"""Masks of tokens as words of 32 bits, as the device takes them."""

from __future__ import annotations

import numpy as np


def words_of(bits: np.ndarray) -> np.ndarray:
    """Packs bool[n] into uint32[ceil(n / 32)]: id i is bit i % 32 of word i // 32."""
    padded = np.pad(bits, (0, -len(bits) % 32))
    return np.packbits(padded, bitorder="little").view("<u4").astype(np.uint32)


def bits_of(words: np.ndarray) -> np.ndarray:
    """The bits of words, as bool[32 * n]."""
    return np.unpackbits(words.astype("<u4").view(np.uint8), bitorder="little").astype(bool)
