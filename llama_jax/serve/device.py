"""The device's side of the engine: seats, a pool of pages, and the compiled programs.

A call dispatches a program and returns at once; its `Round` is fetched later. Each program is
given the seats and the pool, and gives them back changed, so programs run in the order of calls.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from llama_jax.generation.batch import Row
from llama_jax.generation.limits import power_of_two
from llama_jax.generation.placement import Placement
from llama_jax.generation.state import TokenBuffer
from llama_jax.kernels import COMPILER_OPTIONS
from llama_jax.model.paged import PAGE
from llama_jax.pytrees import register_dataclass
from llama_jax.serve import seats as programs
from llama_jax.serve.pool import pool_kind
from llama_jax.serve.seats import Chunk, Echo
from llama_jax.weights.params import Params

_jit = functools.partial(jax.jit, compiler_options=COMPILER_OPTIONS)
seat_row = _jit(programs.seat_row, donate_argnames="seats")
allow = _jit(programs.allow, donate_argnames="seats")
read_chunk = _jit(
    programs.read_chunk, donate_argnames=("seats", "pool"), static_argnames=("draws", "echo")
)
decode_rows = _jit(
    programs.decode_rows, donate_argnames=("seats", "pool"), static_argnames="tokens"
)
clear_pages = _jit(
    lambda pool, pages: programs.laid_out_pool(pool.cleared(pages)), donate_argnames="pool"
)


MOST_SIZES = 6
"""Programs that decode; with the four that read it makes ten that a start compiles."""


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
    """Seats and pages of one model. For one thread, but for `compile_ahead`."""

    def __init__(self, params: Params, place: Placement, *, seats: int, pages: int, exact: bool):
        limits = place.limits
        self.params, self.place = params, place
        self.pages, self.seats = pages, seats
        self.width = -(-params.config.max_seq_len // PAGE)
        """Pages of the longest text: the width of a table."""
        self.chunk = min(limits.turn_tokens, self.width * PAGE)
        """Tokens of a prompt that are read together."""
        self.chunks = limits.turn_chunks
        """Chunks that are read before all rows are taken on by a step."""
        self.tokens = limits.tokens_per_check
        """Tokens of a row that a round makes."""
        self.sizes = [seats] if exact else sizes_of(seats)
        """The numbers of rows for which there is a program to decode. One of them is exact: it
        adds what a row is made of in one order, whoever its neighbours are."""
        self.reads: dict[tuple[bool, bool], Any] = {}
        """Compiled programs that read a chunk, by what `read` is asked for: draws, echo."""
        self.decodes: dict[int, Any] = {}
        """Compiled programs that decode, by their number of rows."""
        self.reset()

    def reset(self) -> None:
        """New seats and an empty pool: after a program failed, which had been given the old."""
        config, place = self.params.config, self.place
        with place.use_mesh():
            empty = {"pages": self.pages, "rows": 1, "width": 1, "dtype": place.cache_dtype}
            make = pool_kind(place).empty
            self._pool = jax.jit(lambda: programs.laid_out_pool(make(config, **empty)))()
            self._seats = jax.jit(lambda: programs.laid_out_empty(config, self.seats))()

    def seat(self, seat: int, row: Row, written: Sequence[int]) -> None:
        """Gives a request a seat; `written` are the tokens that it has written before."""
        one = programs.seats_for(self.params.config, [row], [written])
        with self.place.use_mesh():
            self._seats = seat_row(self._seats, np.int32(seat), one)

    def allow(self, masks: Sequence[tuple[int, np.ndarray]]) -> None:
        """Bounds the next token of some seats by masks of words of 32 ids."""
        size = self._bucket(len(masks))
        rows = np.full(size, self.seats, np.int32)
        words = np.zeros((size, -(-self.params.config.vocab_size // 32)), np.uint32)
        for i, (seat, mask) in enumerate(masks):
            rows[i], words[i] = seat, mask
        with self.place.use_mesh():
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
        chunk = self._chunk(tokens, following, start, seat, pages)
        program = self.reads.get((draws, echo)) or self._compiled_read(draws, echo)
        with self.place.use_mesh():
            made = program(self.params, self._seats, self._pool, chunk)
        self._seats, self._pool, buffer, echoed, finite = made
        return Round(buffer, echoed, finite)

    def decode(
        self, seats: Sequence[int], pages: Sequence[Sequence[int]], until: Sequence[int]
    ) -> Round:
        """Takes seats on by a round, none of them beyond `until` tokens."""
        size = self._bucket(len(seats))
        rows, ends = np.full(size, self.seats, np.int32), np.zeros(size, np.int32)
        rows[: len(seats)], ends[: len(until)] = seats, until
        table = self._table(pages, size)
        program = self.decodes[size]
        with self.place.use_mesh():
            made = program(self.params, self._seats, self._pool, rows, table, ends)
        self._seats, self._pool, buffer = made
        return Round(buffer)

    def clear(self, pages: Sequence[int]) -> None:
        """Fills pages with zeros: what is no number there would spoil their next owner."""
        for first in range(0, len(pages), self.width):
            some = np.full(self.width, self.pages, np.int32)
            here = pages[first : first + self.width]
            some[: len(here)] = here
            with self.place.use_mesh():
                self._pool = clear_pages(self._pool, some)

    def compile_first(self) -> None:
        """Compiles what the first requests run."""
        self._compiled_read(draws=True, echo=False)
        self._compile_decode(self.seats)
        with self.place.use_mesh():
            one = programs.seats_for(self.params.config, [], [])
            seat_row.lower(self._shapes()[0], np.int32(0), one).compile()

    def compile_rest(self) -> Iterator[None]:
        """Compiles the other programs, of which a request then need not wait; yields after each.

        Another thread may do it while requests run. Until then a larger program serves.
        """
        self._compiled_read(draws=False, echo=False)
        yield
        for size in self.sizes:
            if size not in self.decodes:
                self._compile_decode(size)
                yield
        for draws in (True, False):
            self._compiled_read(draws, echo=True)
            yield

    def _compiled_read(self, draws: bool, echo: bool) -> Any:
        """The program that reads a chunk; it is kept."""
        chunk = self._chunk([0], [], 0, 0, [])
        arguments = (self.params, *self._shapes(), chunk)
        with self.place.use_mesh():
            made = read_chunk.lower(*arguments, draws=draws, echo=echo).compile()
        self.reads[draws, echo] = made
        return made

    def _compile_decode(self, size: int) -> None:
        rows, table = np.zeros(size, np.int32), self._table([], size)
        arguments = (self.params, *self._shapes(), rows, table, rows)
        with self.place.use_mesh():
            self.decodes[size] = decode_rows.lower(*arguments, tokens=self.tokens).compile()

    def _shapes(self) -> Any:
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(
                x.shape, x.dtype, sharding=x.sharding, weak_type=x.weak_type
            ),
            (self._seats, self._pool),
        )

    def _bucket(self, rows: int) -> int:
        return min(size for size in tuple(self.decodes) if size >= rows)

    def _table(self, pages: Sequence[Sequence[int]], rows: int) -> np.ndarray:
        table = np.full((rows, self.width), self.pages, np.int32)
        for row, here in zip(table, pages, strict=False):
            row[: len(here)] = here
        return table

    def _chunk(
        self,
        tokens: Sequence[int],
        following: Sequence[int],
        start: int,
        seat: int,
        pages: Sequence[int],
    ) -> Chunk:
        here = np.zeros((2, 1, self.chunk), np.int32)
        here[0, 0, : len(tokens)], here[1, 0, : len(following)] = tokens, following
        last, table = np.int32(len(tokens) - 1), self._table([pages], 1)
        made: Any = (here[0], here[1], np.int32(start), last, np.int32(seat), table)
        return Chunk(*made)


def sizes_of(seats: int) -> list[int]:
    """One row, all seats, and the largest powers of two between: 1, 8, 16, 32, 64 and 128.

    What is left out is among the small ones, of which one more row costs least.
    """
    powers = {min(power_of_two(n + 1), seats) for n in range(seats)}
    return sorted({1, *sorted(powers)[1 - MOST_SIZES :]})
