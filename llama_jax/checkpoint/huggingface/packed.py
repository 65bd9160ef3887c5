"""Integers of 4 and 8 bits as quantized Hugging Face folders pack them into int32 words."""

from __future__ import annotations

import numpy as np

from llama_jax.checkpoint.files.mapped import check_whole

_WORDS = ("qweight", "qzeros", "weight_packed", "weight_zero_point")


class Tensors(dict[str, np.ndarray]):
    """A matrix's own tensors, by their endings: {"qweight": ..., "scales": ...}."""

    def __getitem__(self, name: str) -> np.ndarray:
        found = super().__getitem__(name)
        check_whole(found)
        return found

    def __missing__(self, name: str) -> np.ndarray:
        raise ValueError(f"its {name} is missing")

    def matrix(self, name: str) -> np.ndarray:
        """One of them that has two axes."""
        if self[name].ndim != 2 or not self[name].size:
            raise ValueError(f"its {name} has shape {list(self[name].shape)}, and needs two axes")
        return self[name]

    def check(self, name: str, *shape: int) -> None:
        """ValueError where one has another shape; words that hold several numbers are int32."""
        found = self[name]
        if found.shape != shape:
            raise ValueError(
                f"its {name} has shape {list(found.shape)}, where config.json implies {list(shape)}"
            )
        if name in _WORDS and found.dtype != np.int32:
            raise ValueError(f"its {name} is {found.dtype}, and words are int32")


AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""Which nibble of a word, the lowest being 0, holds each of 8 neighbouring columns."""


def unpacked(words: np.ndarray, bits: int, axis: int) -> np.ndarray:
    """The unsigned integers in int32 words, uint8, along `axis`, the lowest bits first.

    [..., n, ...] becomes [..., n * 32 / bits, ...]: 0x21 and 0x43, of 8 bits, are 1 2 0 0 of the
    first word's nibbles and so on.
    """
    count = 32 // bits
    moved = np.moveaxis(np.ascontiguousarray(words).view(np.uint32), axis, -1)
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    found = (moved[..., None] >> shifts & np.uint32(2**bits - 1)).astype(np.uint8)
    return np.moveaxis(found.reshape(*moved.shape[:-1], moved.shape[-1] * count), -1, axis)


def words_of(numbers: np.ndarray, bits: int, axis: int) -> np.ndarray:
    """Unsigned integers, uint8 [rows, columns], as int32 words along `axis`: undoes `unpacked`.

    Zeros fill the last word.
    """
    each = 32 // bits
    moved = np.moveaxis(numbers, axis, -1)
    moved = np.pad(moved, ((0, 0), (0, -moved.shape[1] % each))).reshape(len(moved), -1, each)
    words = np.zeros(moved.shape[:2], np.uint32)
    for place in range(each):
        words |= moved[..., place].astype(np.uint32) << np.uint32(bits * place)
    return np.ascontiguousarray(np.moveaxis(words.view(np.int32), -1, axis))


def awq_unpacked(words: np.ndarray) -> np.ndarray:
    """AWQ's integers of 4 bits, uint8 [rows, 8 * n] of int32 [rows, n], in the order of columns."""
    return unpacked(words, 4, 1).reshape(len(words), -1, 8)[..., AWQ_ORDER].reshape(len(words), -1)


def half_split_order(outputs: int, heads: int) -> np.ndarray:
    """Which of Hugging Face's outputs is each of ours, of q and k: pairs are adjacent in ours."""
    size = outputs // heads
    pair = np.arange(size)
    within = pair // 2 + pair % 2 * (size // 2)
    return (np.arange(heads)[:, None] * size + within).reshape(-1)
