"""How much of a model is measured, and on which ids."""

from __future__ import annotations

import dataclasses

import numpy as np

from bench.llama2c_file import BOS, SPACE
from bench.models import Model

PROMPT = 16
"""Tokens before those that are decoded."""
FEW = 4
"""New tokens that must be equal in float32."""


@dataclasses.dataclass(frozen=True)
class Effort:
    """How much of one model is measured."""

    rounds: int
    new: int
    """Tokens decoded a row."""
    prefill: int
    """Tokens of the prompt that is read."""
    first_tokens: int
    """Rounds of processes, one a contestant; 0 leaves this out."""

    def within(self, model: Model) -> Effort:
        """The same, of no more positions than the model has."""
        room = model.config.max_seq_len
        new, prefill = min(self.new, room - PROMPT), min(self.prefill, room - 1)
        if new < FEW:
            raise ValueError(f"max_seq_len={room} leaves {PROMPT} prompt tokens no room to decode")
        return dataclasses.replace(self, new=new, prefill=prefill)


def prompts(model: Model, length: int, count: int) -> list[list[int]]:
    """Random ids, the same for everybody, beginning as llama2.c begins."""
    numbers = np.random.default_rng(length)
    drawn = numbers.integers(SPACE + 1, model.config.vocab_size, (count, length))
    drawn[:, :2] = BOS, SPACE
    return drawn.tolist()
