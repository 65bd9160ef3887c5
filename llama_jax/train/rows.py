"""Rows of tokens: what a batch is made of.

Row i of a split is its tokens i * time to (i + 1) * time, and the targets are the tokens one later:

    split    5 6 7 8 9 ...          time = 3
    row 0    tokens 5 6 7           targets 6 7 8
    row 1    tokens 8 9 ...         targets 9 ...
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import numpy as np

from llama_jax.pytrees import register_dataclass
from llama_jax.train.order import Order
from llama_jax.train.token_split import TokenSplit
from llama_jax.validation import check_count

SEPARATE, JOINED = "separate", "joined"


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """Rows of tokens, each field [batch, time]; NumPy arrays before they are put on devices."""

    tokens: Any
    """int32."""
    targets: Any
    """int32: the token after each."""
    positions: Any
    """int32: from 0 at each document's start where documents are separate, else at the row's."""
    weights: Any
    """float32: how much a target counts in the loss; 0 for padding."""


class Rows(Protocol):
    """Rows of tokens by id."""

    @property
    def time(self) -> int:
        """Tokens in a row."""
        ...

    @property
    def whole(self) -> int:
        """Rows 0 to `whole` - 1 are what training reads."""
        ...

    def __len__(self) -> int:
        """All rows: the last may be padded."""
        ...

    def order(self, batch: int, *, seed: int) -> Order:
        """The order in which training reads its rows."""
        ...

    def read(self, ids: np.ndarray) -> Batch:
        """These rows, in new NumPy arrays."""
        ...


@dataclasses.dataclass(frozen=True)
class TextRows:
    """The rows of a split of text.

    `documents` is "separate", where positions restart at each document's start, so that attention
    can keep within it, or "joined", where a row is one text.
    """

    split: TokenSplit
    time: int
    documents: str

    def __post_init__(self) -> None:
        check_count("time", self.time)
        if self.documents not in (SEPARATE, JOINED):
            raise ValueError(f"documents={self.documents!r} must be {SEPARATE!r} or {JOINED!r}")
        if self.documents == SEPARATE:
            self.split.document_starts()  # refused now, and not at the first row
        if len(self.split) < 2:
            raise ValueError(
                f"the {self.split.name} split has {len(self.split)} tokens, so there is none to "
                "predict; add text"
            )

    @property
    def whole(self) -> int:
        """Rows that are full of tokens."""
        return (len(self.split) - 1) // self.time

    def __len__(self) -> int:
        return -(-(len(self.split) - 1) // self.time)

    def order(self, batch: int, *, seed: int) -> Order:
        """The order in which training reads the whole rows."""
        if not self.whole:
            raise ValueError(
                f"the {self.split.name} split has {len(self.split):,} tokens, and a row takes "
                f"{self.time + 1:,}; choose a shorter context, or add text"
            )
        return Order(self.whole, batch, seed)

    def read(self, ids: np.ndarray) -> Batch:
        """These rows, in new NumPy arrays."""
        shape = len(ids), self.time
        tokens, targets, positions = (np.zeros(shape, np.int32) for _ in range(3))
        weights = np.zeros(shape, np.float32)
        for row, id in enumerate(ids.tolist()):
            begin = id * self.time
            found = self.split.read(begin, begin + self.time + 1)
            count = len(found) - 1
            tokens[row, :count], targets[row, :count] = found[:-1], found[1:]
            weights[row, :count] = 1
            positions[row] = self._positions(begin)
        return Batch(tokens, targets, positions, weights)

    def _positions(self, begin: int) -> np.ndarray:
        """How far each of the row's tokens is from its document's start, or from the row's."""
        index = np.arange(begin, begin + self.time)
        if self.documents == JOINED or self.split.starts is None:
            return index - begin
        starts = self.split.document_starts()
        first, last = np.searchsorted(starts, [begin, begin + self.time])
        inside = np.concatenate([[begin], starts[first:last].astype(np.int64)])
        return index - inside[np.searchsorted(inside, index, side="right") - 1]
