"""Rows of a batch as text, in pieces that are trained and pieces that are not."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import NamedTuple

import numpy as np

from llama_jax.tokenizer import Tokenizer
from llama_jax.train.rows import Batch


class Piece(NamedTuple):
    """Adjacent tokens of a row as text."""

    text: str
    """Control tokens by their names."""
    trained: bool
    """Whether predicting these tokens counts in the loss."""


def pieces_of(batch: Batch, row: int, tokenizer: Tokenizer) -> list[Piece]:
    """One row of a batch as text; padding at its end is left out.

    A token is trained where the weight of the target before it is not 0; a row's first never is.
    """
    weights = np.asarray(batch.weights[row]) != 0
    ids = np.append(batch.tokens[row][:1], batch.targets[row])
    trained = np.append(False, weights)
    filled = np.flatnonzero((ids != 0) | trained)
    end = filled[-1] + 1 if filled.size else 1
    names = {id: name for name, id in tokenizer.special.items()}
    pairs = zip(ids[:end].tolist(), trained[:end].tolist(), strict=True)
    return [
        Piece("".join(_texts([id for id, _ in group], tokenizer, names)), is_trained)
        for is_trained, group in groupby(pairs, key=lambda pair: pair[1])
    ]


def _texts(ids: list[int], tokenizer: Tokenizer, names: dict[int, str]) -> Iterator[str]:
    """Text and names of control tokens, in turn."""
    for name, group in groupby(ids, key=names.get):
        if name is not None:
            yield from (name for _ in group)
        else:
            # Not at a text's start, so that SentencePiece's first space stays.
            found = b"".join(tokenizer.token_bytes(id, at_start=False)[0] for id in group)
            yield found.decode(errors="replace")
