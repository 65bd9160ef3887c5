"""Stop strings as the device meets them: as bytes, beside the bytes of every token."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from llama_jax.generation.stops import NOTHING, StopStrings
from llama_jax.tokenizer import Tokenizer

STRINGS, WIDTH = 8, 64
"""Stop strings a row can have, and bytes they can have. Beyond, each power of two is a program."""


def stop_strings(
    tokenizer: Tokenizer | None,
    stops: Sequence[Sequence[str]],
    spelled_after: Sequence[Sequence[int]],
    *,
    batch: int,
    vocab: int,
) -> StopStrings:
    """What each row stops at, for a batch of which `stops` has the first rows."""
    texts = [[stop.encode() for stop in row] for row in stops]
    strings = power_of_two(max(map(len, texts), default=0), STRINGS)
    width = power_of_two(max((len(text) for row in texts for text in row), default=0), WIDTH)
    spelled: Any = np.full((batch, strings, width), NOTHING, np.int16)
    wanted: Any = np.zeros((batch, strings), bool)
    at_start: Any = np.zeros(batch, bool)
    inside: Any = np.zeros((batch, vocab), bool)
    if tokenizer is None or not any(texts):
        table = _nothing_spelled(vocab, width)
        return StopStrings(wanted, spelled, inside, at_start, **vars(table))
    table, long = _spelling(_Same(tokenizer), vocab, width)
    for i, row in enumerate(texts):
        for j, text in enumerate(row):
            wanted[i, j] = True
            spelled[i, j, width - len(text) :] = list(text)
            inside[i, [id for id, bytes_ in long if _is_beyond(bytes_, text, width)]] = True
        at_start[i] = all(
            tokenizer.token_bytes(id, at_start=True)[1] for id in (spelled_after[i] if row else ())
        )
    return StopStrings(wanted, spelled, inside, at_start, **vars(table))


@dataclasses.dataclass(frozen=True)
class _Table:
    """The fields of `StopStrings` that say how tokens are spelled."""

    heads: np.ndarray
    tails: np.ndarray
    sizes: np.ndarray
    dropped: np.ndarray
    still_at_start: np.ndarray


class _Same:
    """A tokenizer as a key: compared as an object, whatever its own class compares."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.tokenizer is other.tokenizer

    def __hash__(self) -> int:
        return id(self.tokenizer)


@functools.lru_cache(maxsize=4)
def _nothing_spelled(vocab: int, width: int) -> _Table:
    sizes, bytes_ = np.zeros(vocab, np.int32), np.zeros((vocab, width), np.uint8)
    return _Table(bytes_, bytes_, sizes, sizes, np.zeros(vocab, bool))


@functools.lru_cache(maxsize=4)
def _spelling(same: _Same, vocab: int, width: int) -> tuple[_Table, list[tuple[int, bytes]]]:
    """The bytes of every token, and the tokens that are longer than `width`."""
    table = _Table(
        np.zeros((vocab, width), np.uint8),
        np.zeros((vocab, width), np.uint8),
        np.zeros(vocab, np.int32),
        np.zeros(vocab, np.int32),
        np.zeros(vocab, bool),
    )
    long = []
    for id in range(min(vocab, same.tokenizer.vocab_size)):
        inside, _ = same.tokenizer.token_bytes(id, at_start=False)
        first, table.still_at_start[id] = same.tokenizer.token_bytes(id, at_start=True)
        head, tail = inside[:width], inside[-width:]
        table.heads[id, : len(head)] = bytearray(head)
        table.tails[id, width - len(tail) :] = bytearray(tail)
        table.sizes[id], table.dropped[id] = len(inside), len(inside) - len(first)
        if len(inside) > width:
            long.append((id, inside))
    return table, long


def _is_beyond(token: bytes, text: bytes, width: int) -> bool:
    """Whether a token spells a text so that it ends beyond the token's first `width` bytes."""
    return token.find(text, width - len(text) + 1) >= 0


def power_of_two(wanted: int, least: int = 1) -> int:
    """The size of a program's array that is to hold `wanted`: the next power of two."""
    return max(least, 1 << max(wanted - 1, 0).bit_length())
