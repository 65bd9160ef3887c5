"""A row under a constraint: which tokens the device may draw next, and whether the text is over."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from llama_jax.generation.constraint import Constraint
from llama_jax.generation.masks import words_of
from llama_jax.generation.results import FinishReason
from llama_jax.generation.settings import SamplingSettings


class Guide:
    """The state of a row's constraint after the tokens so far, kept on the host.

    Its masks also exclude the tokens that settings forbid. A text is over where nothing may follow
    it. The reason is "stop" where it may end there, even before `min_new_tokens`, and "length"
    where settings forbid all that could follow.
    """

    def __init__(
        self, constraint: Constraint, settings: SamplingSettings, stop_ids: Sequence[int]
    ) -> None:
        self._constraint = constraint.copy()
        never = [id for id, bias in settings.logit_bias.items() if bias == -math.inf]
        size = 32 * len(self._constraint.mask())
        self._stops = _words(stop_ids, size)
        self._never = _words([*never, *settings.forbidden_ids], size)
        self.over: FinishReason | None = None
        """Why nothing follows; None while something may."""
        self._look()

    def take(self, tokens: Sequence[int]) -> None:
        """Goes on by tokens that the device drew."""
        for token in tokens:
            self._constraint.take(token)
        self._look()

    def _look(self) -> None:
        self.words = self._constraint.mask()
        """The constraint's mask of the next token."""
        more = self.words & ~self._stops
        if (more & ~self._never).any():
            return
        may_end = (self.words & self._stops).any() or not more.any()
        self.over = "stop" if may_end else "length"


def allowed_words(guides: Sequence[Guide | None], rows: int, vocab_size: int) -> np.ndarray | None:
    """The masks of a batch's rows, uint32[rows, words]; None where no row has a constraint.

    Rows without one, those that are over and those that pad the batch may draw any token.
    """
    if not any(guides):
        return None
    words = np.full((rows, math.ceil(vocab_size / 32)), 0xFFFFFFFF, np.uint32)
    for row, guide in zip(words, guides, strict=False):
        if guide is not None and guide.over is None:
            row[:] = guide.words
    return words


def _words(ids: Sequence[int], size: int) -> np.ndarray:
    bits = np.zeros(size, bool)
    bits[[id for id in ids if 0 <= id < size]] = True
    return words_of(bits)
