"""The order in which training reads rows: a pure function of the step.

Each epoch is a seeded bijection of the row ids, so nothing is stored but the step: any number of
processes, on any mesh, after any interruption, reads the rows that are due. The numbers are a
promise: a run that goes on under a newer version reads on where it was.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from llama_jax.validation import check_count

_ROUNDS = 16
_MASK = 2**64 - 1


@dataclasses.dataclass(frozen=True)
class Order:
    """Which of `rows` rows make each batch; every row comes once an epoch."""

    rows: int
    batch: int
    seed: int

    def __post_init__(self) -> None:
        check_count("rows", self.rows)
        check_count("batch", self.batch)
        integer = isinstance(self.seed, int) and not isinstance(self.seed, bool)
        if not integer or not 0 <= self.seed < 2**32:
            raise ValueError(f"seed={self.seed!r} must be an integer from 0 to 2**32 - 1")

    def at(self, step: int) -> np.ndarray:
        """The row ids of batch `step`, int64 [batch]; a batch may go on in the next epoch."""
        drawn = step * self.batch + np.arange(self.batch, dtype=np.int64)
        epochs, places = np.divmod(drawn, self.rows)
        found = np.empty_like(drawn)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            found[here] = permuted(places[here], self.rows, self.seed, epoch)
        return found

    def epoch(self, step: int) -> float:
        """How many times the rows have been read before batch `step`."""
        return step * self.batch / self.rows


def permuted(places: np.ndarray, count: int, seed: int, epoch: int) -> np.ndarray:
    """Where a bijection of 0 ... count - 1, one for each seed and epoch, takes `places`.

    A Feistel network permutes the numbers of as many bits as count - 1 has. A number that it takes
    beyond `count` is taken on until it is not, which keeps the whole a bijection.
    """
    bits = (count - 1).bit_length()
    key = _mixed(_mixed(seed) ^ epoch)
    keys = np.array([_mixed(key + index) for index in range(_ROUNDS)], np.uint64)
    found = _feistel(places.astype(np.uint64), bits, keys)
    while (beyond := found >= count).any():
        found[beyond] = _feistel(found[beyond], bits, keys)
    return found.astype(np.int64)


def _feistel(numbers: np.ndarray, bits: int, keys: np.ndarray) -> np.ndarray:
    """Permutes the numbers of `bits` bits: each half in turn is xored with the other's hash."""
    low_bits = np.uint64(bits // 2)
    low_mask = np.uint64(2 ** (bits // 2) - 1)
    high_mask = np.uint64(2 ** (bits - bits // 2) - 1)
    low, high = numbers & low_mask, numbers >> low_bits
    for one, two in keys.reshape(-1, 2):
        high = high ^ (_hashed(low ^ one) & high_mask)
        low = low ^ (_hashed(high ^ two) & low_mask)
    return (high << low_bits) | low


def _hashed(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finalizer: every bit of `x` changes every bit of the result."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _mixed(x: int) -> int:
    """The same of one integer, after SplitMix64's step."""
    return int(_hashed(np.array([(x + 0x9E3779B97F4A7C15) & _MASK], np.uint64))[0])
