"""The compiled programs of an engine: they read, decode, and give a seat.

They are called as compiled, so that no call compiles. Their arguments are known by shapes, so all
can be compiled before the weights are loaded.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from llama_jax.generation.limits import power_of_two
from llama_jax.generation.placement import Placement
from llama_jax.kernels import COMPILER_OPTIONS
from llama_jax.model.cache import Cache, KVCache
from llama_jax.model.paged import PAGE, Paged
from llama_jax.serve import seats as on_seats
from llama_jax.serve.pool import pages_of_pool, pool_kind
from llama_jax.serve.seats import Chunk, Seats
from llama_jax.untraced import compiled
from llama_jax.validation import check_count
from llama_jax.weights.params import Params

_jit = functools.partial(jax.jit, compiler_options=COMPILER_OPTIONS)
seat_row = _jit(on_seats.seat_row, donate_argnames="seats")
allow = _jit(on_seats.allow, donate_argnames="seats")
read_chunk = _jit(
    on_seats.read_chunk, donate_argnames=("seats", "pool"), static_argnames=("draws", "echo")
)
decode_rows = _jit(
    on_seats.decode_rows, donate_argnames=("seats", "pool"), static_argnames="tokens"
)
clear_pages = _jit(
    lambda pool, pages: on_seats.laid_out_pool(pool.cleared(pages)), donate_argnames="pool"
)

empty_seats = jax.jit(on_seats.laid_out_empty, static_argnums=(0, 1))
empty_pool = jax.jit(
    lambda config, kind, pages, dtype: on_seats.laid_out_pool(
        kind.empty(config, pages=pages, rows=1, width=1, dtype=dtype)
    ),
    static_argnums=(0, 1, 2, 3),
)

_COMPILING = {read_chunk: threading.Lock(), decode_rows: threading.Lock()}
"""Whoever compiles a program holds its lock. An engine that is made while `prepare` compiles for it
then finds the program, and does not compile it a second time."""
MOST_SIZES = 6
"""Programs that decode; with the four that read it makes ten that a start compiles."""


class Programs:
    """The programs of one model with so many seats and pages, compiled once each."""

    def __init__(self, params: Params, place: Placement, *, seats: int, pages: int, exact: bool):
        self.params, self.place = params, place
        self.pages, self.seats = pages, seats
        self.width = -(-params.config.max_seq_len // PAGE)
        """Pages of the longest text: the width of a table."""
        self.chunk = min(place.limits.turn_tokens, self.width * PAGE)
        """Tokens of a prompt that are read together."""
        self.tokens = place.limits.tokens_per_check
        """Tokens of a row that a round makes."""
        self.sizes = [seats] if exact else sizes_of(seats)
        """The numbers of rows for which there is a program to decode. One of them is exact: it
        adds what a row is made of in one order, whoever its neighbours are."""
        self.reads: dict[tuple[bool, bool], Any] = {}
        """Those compiled that read a chunk, by what `read` is asked for: draws, echo."""
        self.decodes: dict[int, Any] = {}
        """Those compiled that decode, by their number of rows."""

    @classmethod
    def of(
        cls,
        params: Params,
        *,
        rows: int | None,
        cache_bytes: int | None,
        cache: type[Cache],
        exact: bool,
    ) -> Programs:
        """Those of an `Engine` with these arguments; the weights may be shapes."""
        place = Placement.of(params, cache)
        if place.batch_divisor > 1:
            raise ValueError(
                f"an engine runs on a mesh of tensor alone, and this one has {place.mesh}; put the "
                "devices on tensor, or run one engine each"
            )
        if rows is not None:
            check_count("rows", rows)
        limits = place.limits
        seats = limits.seats if rows is None else rows
        pages = pages_of_pool(params, place, seats, cache_bytes, limits.turn_tokens)
        return cls(params, place, seats=seats, pages=pages, exact=exact)

    def compile_first(self) -> None:
        """Compiles what the first requests run.

        In two threads: while XLA compiles one program, Python traces the other.
        """
        with ThreadPoolExecutor() as threads:
            made = [
                threads.submit(self.read, True, False),
                threads.submit(self._decode, self.seats),
            ]
            for each in made:
                each.result()
        with self.place.use_mesh():
            one = on_seats.seats_for(self.params.config, [], [])
            seat_row.lower(self._state[0], np.int32(0), one).compile()

    def compile_rest(self) -> Iterator[None]:
        """Compiles the other programs, of which a request then need not wait; yields after each.

        Another thread may do it while requests run. Until then a larger program serves.
        """
        self.read(draws=False, echo=False)
        yield
        for size in self.sizes:
            if size not in self.decodes:
                self._decode(size)
                yield
        for draws in (True, False):
            self.read(draws, echo=True)
            yield

    def read(self, draws: bool, echo: bool) -> Any:
        """The program that reads a chunk; it is compiled where it is not yet."""
        if (draws, echo) not in self.reads:
            arguments = (self.params, *self._state, self.chunk_of([0], [], 0, 0, []))
            with _COMPILING[read_chunk], self.place.use_mesh():
                program = compiled(read_chunk, *arguments, draws=draws, echo=echo)
                self.reads[draws, echo] = program
        return self.reads[draws, echo]

    def bucket(self, rows: int) -> int:
        """The smallest number of rows, of those compiled, that holds so many."""
        return min(size for size in tuple(self.decodes) if size >= rows)

    def table(self, pages: Sequence[Sequence[int]], rows: int) -> np.ndarray:
        """The tables of rows [rows, width]; where a row has no page stands one beyond the pool."""
        table = np.full((rows, self.width), self.pages, np.int32)
        for row, here in zip(table, pages, strict=False):
            row[: len(here)] = here
        return table

    def chunk_of(
        self,
        tokens: Sequence[int],
        following: Sequence[int],
        start: int,
        seat: int,
        pages: Sequence[int],
    ) -> Chunk:
        """A part of a prompt, as `read`'s program takes it."""
        here = np.zeros((2, 1, self.chunk), np.int32)
        here[0, 0, : len(tokens)], here[1, 0, : len(following)] = tokens, following
        last, table = np.int32(len(tokens) - 1), self.table([pages], 1)
        made: Any = (here[0], here[1], np.int32(start), last, np.int32(seat), table)
        return Chunk(*made)

    def empty(self) -> tuple[Seats, Paged]:
        """Seats that nobody has, and an empty pool."""
        with self.place.use_mesh():
            return self._empty[0](), self._empty[1]()

    def _decode(self, size: int) -> None:
        rows, table = np.zeros(size, np.int32), self.table([], size)
        arguments = (self.params, *self._state, rows, table, rows)
        with _COMPILING[decode_rows], self.place.use_mesh():
            self.decodes[size] = compiled(decode_rows, *arguments, tokens=self.tokens)

    @functools.cached_property
    def _empty(self) -> list[Any]:
        """The programs that make seats and a pool."""
        config, kind = self.params.config, pool_kind(self.place)
        with self.place.use_mesh():
            return [
                empty_seats.lower(config, self.seats).compile(),
                empty_pool.lower(config, kind, self.pages, self.place.cache_dtype).compile(),
            ]

    @functools.cached_property
    def _state(self) -> list[Any]:
        """The shapes of seats and pool, and how they lie."""
        return [
            jax.tree.map(
                lambda x, sharding: jax.ShapeDtypeStruct(
                    x.shape, x.dtype, sharding=sharding, weak_type=x.weak_type
                ),
                program.out_info,
                program.output_shardings,
            )
            for program in self._empty
        ]


def prepare(
    params: Params,
    *,
    rows: int | None = None,
    cache_bytes: int | None = None,
    cache: type[Cache] = KVCache,
    exact: bool = False,
) -> Iterator[None]:
    """Compiles what the first requests to an `Engine` with these arguments will run.

    It yields before, when it knows the engine's sizes. The weights may be shapes
    (`checkpoint.shapes`), so that this can go on while `load` reads: JAX remembers a program by
    shapes and devices.
    """
    programs = Programs.of(params, rows=rows, cache_bytes=cache_bytes, cache=cache, exact=exact)
    yield
    programs.compile_first()
    yield


def sizes_of(seats: int) -> list[int]:
    """One row, all seats, and the largest powers of two between: 1, 8, 16, 32, 64 and 128.

    What is left out is among the small ones, of which one more row costs least.
    """
    powers = {min(power_of_two(n + 1), seats) for n in range(seats)}
    return sorted({1, *sorted(powers)[1 - MOST_SIZES :]})
