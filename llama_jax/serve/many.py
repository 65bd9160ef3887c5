"""Many completions at once by an engine's turns, in the caller's own thread.

A batch reads all prompts as long as its longest, and decodes until its longest answer. Here each
prompt is read by itself, and the next row takes a seat as soon as one is free. All rows are there
from the beginning, so there is no queue that others fill, no thread, and nobody gives way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from llama_jax.config import Config
from llama_jax.generation.asked import Asked
from llama_jax.generation.batch import Row, grouped, padded_length, padded_rows
from llama_jax.generation.completed import Gains
from llama_jax.generation.driver import wait_for
from llama_jax.generation.limits import (
    MAX_CACHE_BYTES,
    ROUND_TOKENS,
    power_of_two,
    tokens_per_round,
)
from llama_jax.generation.row_writer import RowWriter
from llama_jax.model.paged import PAGE
from llama_jax.serve.device import Device
from llama_jax.serve.line import Line
from llama_jax.serve.pages import Pages
from llama_jax.serve.pool import has_pages, pool_kind
from llama_jax.serve.programs import Programs
from llama_jax.serve.rounds import ROUNDS_IN_FLIGHT, Rounds
from llama_jax.serve.scheduler import Scheduler
from llama_jax.serve.stream import Stream
from llama_jax.serve.writing import Writing
from llama_jax.weights.params import Params

SAVED = 1.25
"""So many times as many places must batches compute: in one that they fill, places cost no more
than in turns, and on a small model less (docs/notes/benchmarks.md)."""


def suits(params: Params, asked: Asked) -> bool:
    """Whether turns are faster than batches for these rows, as far as that was measured.

    They are for more rows than `Limits.most_in_batches`, on one device, whose lengths differ so far
    that batches would compute a quarter as many places again. Batches stay for rows under a
    constraint, whose every token the host must see, for a cache that has no form in pages, and
    where the longest rows together need more pages than a batch may have.
    """
    rows, place, _ = asked
    return (
        len(rows) > place.limits.most_in_batches
        and place.mesh is None
        and has_pages(place)
        and all(row.constraint is None for row in rows)
        and _pages_needed(asked) <= _most_pages(params, asked)
        and places_in_batches(params.config, asked) >= SAVED * places_in_turns(asked)
    )


def prepare(params: Params, asked: Asked) -> Iterator[None]:
    """Compiles the programs of `by_turns`; yields after those that the first tokens need."""
    programs = _programs(params, asked)
    programs.compile_first()
    yield
    if any(len(row.prompt) > programs.chunk for row in asked.rows):
        programs.read(draws=False, echo=False)
    yield


def by_turns(params: Params, asked: Asked) -> Gains:
    """What the rows gain, a token a turn, those that may have most tokens first.

    A row's log-probabilities are the same to the bit whatever the other rows are.
    """
    rows = sorted(asked.rows, key=lambda row: -row.max_new_tokens)
    while rows and not rows[-1].max_new_tokens:
        row = rows.pop()
        yield row, RowWriter(row, asked.tokenizer).nothing()
    if not rows:
        return
    programs = _programs(params, asked)
    programs.compile_first()
    rounds, stream = _begun(programs, asked, rows)
    large = tokens_per_round(asked.place.limits, params.nbytes) < ROUND_TOKENS
    while not rounds.idle:
        before = rounds.dispatch()
        for one in before:
            if large and one.made.buffer is not None:  # JAX's own wait is deaf to Ctrl-C
                wait_for(one.made.buffer)
        rounds.take(before)
        for delta in stream.taken():
            yield asked.rows[delta.row], delta


def _begun(programs: Programs, asked: Asked, rows: Sequence[Row]) -> tuple[Rounds, Stream]:
    """The turns of all rows before the first one, and where what they give comes in."""
    device = Device(programs)
    device.reset()
    scheduler = Scheduler(
        Pages(programs.pages, PAGE),
        programs.seats,
        chunk=programs.chunk,
        width=programs.width,
        lookahead=ROUNDS_IN_FLIGHT * programs.tokens,
        exact=True,
    )
    rounds = Rounds(device, scheduler)
    stream = Stream([], len(rows), lambda _: None)
    for row in rows:
        line = Line(row.prompt, row.max_new_tokens)
        rounds.add(Writing(line, RowWriter(row, asked.tokenizer), stream))
    return rounds, stream


def _programs(params: Params, asked: Asked) -> Programs:
    """Those of an exact engine, whose pool has a size of few: each size is another program."""
    pages = min(power_of_two(_pages_needed(asked)), _most_pages(params, asked))
    return Programs(params, asked.place, seats=asked.place.limits.seats, pages=pages, exact=True)


def places_in_batches(config: Config, asked: Asked) -> int:
    """The positions that batches compute, padding and rows that have ended among them."""
    return sum(
        padded_rows(asked.place, len(group))
        * (padded_length(config, group) + max(row.max_new_tokens for row in group))
        for group in grouped(config, asked.place, asked.rows)
    )


def places_in_turns(asked: Asked) -> int:
    """The positions that turns compute, the ends of chunks among them."""
    chunk = asked.place.limits.turn_tokens
    return sum(-(-len(row.prompt) // chunk) * chunk + row.max_new_tokens for row in asked.rows)


def _pages_needed(asked: Asked) -> int:
    """In so many pages the longest rows have room, one on each seat."""
    lengths = sorted((len(row.prompt) + row.max_new_tokens for row in asked.rows), reverse=True)
    return sum(-(-length // PAGE) for length in lengths[: asked.place.limits.seats])


def _most_pages(params: Params, asked: Asked) -> int:
    """As many as the cache of a batch may take."""
    kind, dtype = pool_kind(asked.place), asked.place.cache_dtype
    return MAX_CACHE_BYTES // kind.pool_bytes(params.config, pages=1, dtype=dtype)
