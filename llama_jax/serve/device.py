"""The device's side of the engine: seats and a pool of pages, changed by the compiled programs.

A call dispatches a program and returns at once; its `Round` is fetched later. Each program is
given the seats and the pool, and gives them back changed, so programs run in the order of calls.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from llama_jax.generation.batch import Row
from llama_jax.generation.state import TokenBuffer
from llama_jax.pytrees import register_dataclass
from llama_jax.serve.programs import Programs, allow, clear_pages, seat_row
from llama_jax.serve.seats import Echo, seats_for


@dataclasses.dataclass(frozen=True)
class Round:
    """What a program will have made."""

    buffer: TokenBuffer | None = None
    """New tokens of its rows; None of a chunk that draws none."""
    echo: Echo | None = None
    finite: Any = True
    """Whether the keys and values of a chunk are numbers."""

    def fetch(self) -> Round:
        """The same as NumPy arrays, once it is there. Log-probabilities that nobody wants stay."""
        return jax.device_get(self)


register_dataclass(Round)


class Device:
    """Seats and pages of one model. For one thread, which calls `reset` first."""

    def __init__(self, programs: Programs):
        self.programs = programs
        self._params = programs.params
        self.chunks = programs.place.limits.turn_chunks
        """Chunks that are read before all rows are taken on by a step."""

    def reset(self) -> None:
        """New seats and an empty pool: at first, and after a program failed that had the old."""
        self._seats, self._pool = self.programs.empty()

    def seat(self, seat: int, row: Row, written: Sequence[int]) -> None:
        """Gives a request a seat; `written` are the tokens that it has written before."""
        one = seats_for(self._params.config, [row], [written])
        with self.programs.place.use_mesh():
            self._seats = seat_row(self._seats, np.int32(seat), one)

    def allow(self, masks: Sequence[tuple[int, np.ndarray]]) -> None:
        """Bounds the next token of some seats by masks of words of 32 ids."""
        size = self.programs.bucket(len(masks))
        rows = np.full(size, self.programs.seats, np.int32)
        words = np.zeros((size, -(-self._params.config.vocab_size // 32)), np.uint32)
        for i, (seat, mask) in enumerate(masks):
            rows[i], words[i] = seat, mask
        with self.programs.place.use_mesh():
            self._seats = allow(self._seats, rows, words)

    def read(
        self,
        tokens: Sequence[int],
        following: Sequence[int],
        start: int,
        seat: int,
        pages: Sequence[int],
        *,
        draws: bool,
        echo: bool,
    ) -> Round:
        """Reads a chunk of a prompt, whose first token is at `start`.

        With `echo` the round has the log-probabilities of the tokens `following` each.
        """
        chunk = self.programs.chunk_of(tokens, following, start, seat, pages)
        program = self.programs.read(draws, echo)
        with self.programs.place.use_mesh():
            made = program(self._params, self._seats, self._pool, chunk)
        self._seats, self._pool, buffer, echoed, finite = made
        return Round(buffer, echoed, finite)

    def decode(
        self, seats: Sequence[int], pages: Sequence[Sequence[int]], until: Sequence[int]
    ) -> Round:
        """Takes seats on by a round, none of them beyond `until` tokens."""
        size = self.programs.bucket(len(seats))
        rows, ends = np.full(size, self.programs.seats, np.int32), np.zeros(size, np.int32)
        rows[: len(seats)], ends[: len(until)] = seats, until
        table = self.programs.table(pages, size)
        program = self.programs.decodes[size]
        with self.programs.place.use_mesh():
            made = program(self._params, self._seats, self._pool, rows, table, ends)
        self._seats, self._pool, buffer = made
        return Round(buffer)

    def clear(self, pages: Sequence[int]) -> None:
        """Fills pages with zeros: what is no number there would spoil their next owner."""
        width = self.programs.width
        for first in range(0, len(pages), width):
            some = np.full(width, self.programs.pages, np.int32)
            here = pages[first : first + width]
            some[: len(here)] = here
            with self.programs.place.use_mesh():
                self._pool = clear_pages(self._pool, some)
