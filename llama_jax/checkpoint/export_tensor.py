"""A weight on its way to another project's file: cut, turned, put in that project's order."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np

from llama_jax.checkpoint.blocks import Stored, transposed
from llama_jax.checkpoint.placing import Index

BLOCK_BYTES = 32 << 20
"""About how much of a tensor is held at once."""
CHUNK = 512  # columns that a native checkpoint reads together


@dataclasses.dataclass(frozen=True)
class ExportTensor:
    """One tensor of a file: which part of which weight, and how it lies there."""

    name: str
    tensor: Stored
    part: Index
    """In our layout, [in, out]."""
    transposed: bool
    """Whether the file has [out, in]."""
    head_dim: int | None
    """Where set, the rows of each head lie as Hugging Face has them: all real parts of the pairs
    that RoPE turns, then all imaginary ones."""
    dtype: np.dtype
    """In the file."""

    @property
    def shape(self) -> tuple[int, ...]:
        """As the file has it."""
        sizes = tuple(cut.stop - cut.start for cut in self.part)
        return sizes[::-1] if self.transposed else sizes

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def stored_bytes(self) -> int:
        """How many bytes it takes in the file."""
        return self.nbytes

    @property
    def stored_as(self) -> str:
        """How its numbers lie in the file, in a word."""
        return self.dtype.name

    def packed(self, block: np.ndarray) -> np.ndarray:
        """What the file holds of a block in its `dtype`."""
        return block

    def blocks(self) -> Iterator[np.ndarray]:
        """The tensor as the file has it, in bands of rows from first to last, not yet cast."""
        axis = len(self.part) - 1 if self.transposed else 0
        rows = self.part[axis]
        step = self._rows_at_once()
        for start in range(rows.start, rows.stop, step):
            band = slice(start, min(start + step, rows.stop))
            block = self.tensor[(*self.part[:axis], band, *self.part[axis + 1 :])]
            if self.transposed:
                block = transposed(block)
            yield to_half_split(block, self.head_dim) if self.head_dim else block

    def _rows_at_once(self) -> int:
        row_bytes = math.prod(self.shape[1:]) * self.tensor.dtype.itemsize
        whole = math.lcm(CHUNK, self.head_dim or 1)
        return max(1, BLOCK_BYTES // row_bytes // whole) * whole


def to_half_split(rows: np.ndarray, head_dim: int) -> np.ndarray:
    """Rows of heads as Hugging Face has them, of rows whose pairs are adjacent."""
    pairs = rows.reshape(-1, head_dim // 2, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)
