"""The requests of a run: each follows from the seed and its own number alone.

So two servers are asked the same, and no request is asked twice: no answer is an earlier one's.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

PREFIX = 400
"""Tokens that the prompts of the mix `shared` begin with, the same in all."""
PROMPTS = {"mixed": (20, 600), "shared": (20, 60), "apart": (20, 60)}
"""Tokens of a prompt, the least and the most; in `shared` and `apart` those after the prefix."""
NEW = (20, 300)
CHARACTERS = 4
"""About so many a token, where there is no tokenizer to count by."""


@dataclasses.dataclass(frozen=True)
class Asked:
    """One request: a prompt, as ids or as text, and how many tokens it wants."""

    number: int
    prompt: list[int] | str
    length: int
    """Of the prompt, in tokens; of a text an estimate."""
    new: int


@dataclasses.dataclass(frozen=True)
class Mix:
    """Prompts cut from a source at random places, of random lengths.

    `mixed`: lengths are log-normal, two standard deviations to either bound, drawn again beyond.
    `shared`: the same 400 tokens and then such a prompt. `apart`: as long, and each with 400 tokens
    of its own: what sharing is compared with. New tokens are uniform between their bounds.
    """

    source: Sequence[int] | str
    kind: str = "mixed"
    prompt: tuple[int, int] | None = None
    new: tuple[int, int] = NEW
    seed: int = 0

    def __post_init__(self) -> None:
        for name, bounds in (("prompt", self.lengths), ("new", self.new)):
            if not 1 <= bounds[0] <= bounds[1]:
                raise ValueError(f"--{name} {bounds[0]} {bounds[1]} must be 1 <= least <= most")
        if len(self.source) < (need := 2 * self._size(PREFIX + self.lengths[1])):
            what = "characters" if isinstance(self.source, str) else "tokens"
            raise ValueError(f"--text has {len(self.source)} {what} and needs {need}; pass another")

    @property
    def lengths(self) -> tuple[int, int]:
        """The least and the most tokens of a prompt, after the prefix that it may have."""
        return self.prompt or PROMPTS[self.kind]

    def asked(self, number: int) -> Asked:
        """The request of this number."""
        drawn = np.random.default_rng([self.seed, number + 2**32])
        length, new = (
            _log_normal(drawn, *self.lengths),
            int(drawn.integers(*self.new, endpoint=True)),
        )
        begin = self._cut(drawn, length)
        if self.kind == "mixed":
            return Asked(number, begin, length, new)
        of = np.random.default_rng(self.seed) if self.kind == "shared" else drawn
        return Asked(number, self._cut(of, PREFIX) + begin, PREFIX + length, new)

    def _cut(self, drawn: np.random.Generator, length: int) -> Any:
        size = self._size(length)
        start = int(drawn.integers(len(self.source) - size, endpoint=True))
        return self.source[start : start + size]

    def _size(self, length: int) -> int:
        return length * (CHARACTERS if isinstance(self.source, str) else 1)


def arrivals(rate: float, seed: int) -> Callable[[], float]:
    """Seconds to wait for the next request of a Poisson process, call by call."""
    drawn = np.random.default_rng([seed, 1])
    return lambda: float(drawn.exponential(1 / rate))


def _log_normal(drawn: np.random.Generator, least: int, most: int) -> int:
    middle = (math.log(least) + math.log(most)) / 2
    deviation = (math.log(most) - math.log(least)) / 4
    while not least <= (length := round(drawn.lognormal(middle, deviation))) <= most:
        pass
    return length
