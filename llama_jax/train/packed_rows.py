"""Rows of packed dialogs: whole dialogs side by side, padded, the assistant's tokens trained."""

from __future__ import annotations

import dataclasses

import numpy as np

from llama_jax.checkpoint.files.mapped import still_whole
from llama_jax.train.order import Order
from llama_jax.train.rows import Batch, TextRows
from llama_jax.train.token_folder import Packed, TokenSplit


@dataclasses.dataclass(frozen=True)
class PackedRows:
    """The rows into which the dialogs of a split were packed.

    Positions restart at each dialog. A target weighs 1 where it is trained and in the same dialog.
    """

    split: TokenSplit
    packed: Packed

    @property
    def time(self) -> int:
        """Tokens in a row."""
        return self.packed.time

    @property
    def whole(self) -> int:
        """All rows: each is as full as the packing made it."""
        return len(self)

    def __len__(self) -> int:
        return len(self.packed.row_starts) - 1

    def order(self, batch: int, *, seed: int) -> Order:
        """The order in which training reads the rows."""
        return Order(len(self), batch, seed)

    def read(self, ids: np.ndarray) -> Batch:
        """These rows, in new NumPy arrays."""
        shape = len(ids), self.time
        tokens, targets, positions = (np.zeros(shape, np.int32) for _ in range(3))
        weights = np.zeros(shape, np.float32)
        starts, index = self.split.document_starts(), np.arange(self.time)
        row_starts, trained = map(still_whole, (self.packed.row_starts, self.packed.trained))
        for row, id in enumerate(ids.tolist()):
            begin, end = (int(row_starts[id + i]) for i in range(2))
            found, count = self.split.read(begin, end), end - begin
            first, last = np.searchsorted(starts, [begin, end])
            dialogs = starts[first:last].astype(np.int64) - begin
            tokens[row, :count], targets[row, : count - 1] = found, found[1:]
            weights[row, : count - 1] = trained[begin + 1 : end]
            weights[row, dialogs[1:] - 1] = 0
            inside = np.append(dialogs, count)
            positions[row] = index - inside[np.searchsorted(inside, index, side="right") - 1]
        return Batch(tokens, targets, positions, weights)


def rows_in(split: TokenSplit, *, time: int, documents: str) -> TextRows | PackedRows:
    """The rows of a split of text or of dialogs; ValueError where dialogs have another length."""
    if split.packed is None:
        return TextRows(split, time, documents)
    if documents != "separate":
        raise ValueError(
            f"documents={documents!r} would let packed dialogs see each other; use 'separate'"
        )
    if split.packed.time != time:
        raise ValueError(
            f"the dialogs were packed into rows of {split.packed.time} tokens, not {time}; choose "
            "that context, or pack them again with `llama-jax tokenize --dialogs`"
        )
    return PackedRows(split, split.packed)
