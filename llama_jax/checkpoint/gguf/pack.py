"""Weights packed into GGUF's blocks of 32, as ggml packs them."""

from __future__ import annotations

import numpy as np


def pack_q8_0(weights: np.ndarray) -> np.ndarray:
    """uint8 [blocks, 34] of float32 [blocks, 32]: a float16 scale, and codes from -127 to 127."""
    scale = np.abs(weights).max(1, keepdims=True) / np.float32(127)
    codes = _away_from_zero(weights * _inverse(scale)).astype(np.int8)
    return np.concatenate([_halves(scale), codes.view(np.uint8)], 1)


def pack_q4_0(weights: np.ndarray) -> np.ndarray:
    """uint8 [blocks, 18] of float32 [blocks, 32]: a float16 scale, and codes from -8 to 7.

    The weight that is largest in size becomes -8, so the scale has its opposite sign.
    """
    largest = np.abs(weights).argmax(1, keepdims=True)
    scale = np.take_along_axis(weights, largest, 1) / np.float32(-8)
    codes = np.trunc(weights * _inverse(scale) + np.float32(8.5)).clip(0, 15).astype(np.uint8)
    return np.concatenate([_halves(scale), codes[:, :16] | codes[:, 16:] << 4], 1)


def _inverse(scale: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.where(scale == 0, np.float32(0), np.float32(1) / scale)


def _away_from_zero(x: np.ndarray) -> np.ndarray:
    """Rounds halves away from zero, as C's `roundf`."""
    size = np.abs(x)
    floor = np.floor(size)
    return np.sign(x) * (floor + np.floor(2 * (size - floor)))


def _halves(scale: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # counted as not finite, and said, where it is written
        return scale.astype("<f2").view(np.uint8)
