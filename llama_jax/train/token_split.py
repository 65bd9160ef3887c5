"""The tokens of a split as one long memory-mapped text."""

from __future__ import annotations

import dataclasses
import functools
import itertools

import numpy as np

from llama_jax.checkpoint.files.mapped import still_whole


@dataclasses.dataclass(frozen=True)
class Packed:
    """How the dialogs of a split were packed into rows, and which of their tokens are trained."""

    time: int
    """No row has more tokens."""
    row_starts: np.ndarray
    """uint64 [rows + 1]: row i is tokens row_starts[i] to row_starts[i + 1], whole dialogs."""
    trained: np.ndarray
    """uint8 [tokens]: whether predicting the token is trained."""


@dataclasses.dataclass(frozen=True)
class TokenSplit:
    """All tokens of one split, as if its shards were one."""

    name: str
    shards: tuple[np.ndarray, ...]
    """Memory-mapped, uint16 or uint32."""
    starts: np.ndarray | None
    """Where each document starts, increasing; None where the files do not say it."""
    text_bytes: int | None
    """UTF-8 bytes of the documents' text, from which loss becomes bits per byte."""
    vocab_size: int | None
    """Every id is below it; None leaves it unchecked."""
    packed: Packed | None = None
    """None for text, which is cut into rows of any length."""

    def __len__(self) -> int:
        return self._ends[-1]

    @functools.cached_property
    def _ends(self) -> list[int]:
        return list(itertools.accumulate(len(shard) for shard in self.shards))

    def document_starts(self) -> np.ndarray:
        """Where each document starts; ValueError where the files do not say it."""
        if self.starts is None:
            raise ValueError(
                "these files do not say where a document starts; use documents='joined', or make "
                "the tokens with `llama-jax tokenize`"
            )
        return still_whole(self.starts)

    def read(self, begin: int, end: int) -> np.ndarray:
        """Tokens `begin` to `end` as int32: fewer where the split ends before.

        ValueError where a shard became shorter since it was opened, or holds a token that is none.
        """
        parts, first = [], 0
        for shard, last in zip(self.shards, self._ends, strict=True):
            if begin < last and first < end:
                parts.append(still_whole(shard)[max(begin - first, 0) : end - first])
            first = last
        found: np.ndarray = np.concatenate(parts) if parts else np.zeros(0, np.uint16)
        known = 2**31 if self.vocab_size is None else self.vocab_size
        if found.size and found.max() >= known:
            raise ValueError(
                f"the {self.name} split has the token {found.max()} between {begin:,} and {end:,}, "
                f"and the model's are 0 to {known - 1}; it was made with another tokenizer, so "
                "make it again with the model's, or give a new model more: model.fields.vocab_size"
            )
        return found.astype(np.int32)
