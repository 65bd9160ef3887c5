"""What the device keeps of the requests in progress, and the programs that take them on.

A model of 16 seats and a vocabulary of 32,000 keeps counts [16, 32000], settings [16, ...], each
row's newest token [16], and keys and values in the pages of a pool. A request has a seat from its
first chunk to its end.

    seat_row     a request's settings and history to its seat
    read_chunk   64 tokens of one prompt into its pages; the last chunk draws the first token
    decode_rows  some seats [B] on by a token, with their tables of pages [B, width]
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Int, UInt32

from llama_jax.config import Config
from llama_jax.generation.batch import Row, batch_settings
from llama_jax.generation.limits import MAX_LOGPROBS
from llama_jax.generation.loop import append_token, decode
from llama_jax.generation.sample import BatchSettings, History, logprobs_of
from llama_jax.generation.state import DecodeState, TokenBuffer
from llama_jax.model.paged import PAGE, Paged
from llama_jax.model.transformer import forward
from llama_jax.pytrees import register_dataclass
from llama_jax.sharding.arrays import constrain
from llama_jax.weights.params import Params
from llama_jax.weights.table import REPLICATED, TENSOR

EVERY = 2**32 - 1
"""A word of a mask that allows 32 ids."""
BY_VOCABULARY = P(None, TENSOR)
"""How a mesh cuts an array [seats, vocab]."""


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Seats:
    """The state of `S` rows on the device. A row that nobody has is stopped."""

    settings: BatchSettings
    """`logprobs` is one for each seat here."""
    history: History
    allowed: UInt32[Array, "seats words"]
    """Which tokens a row's constraint allows next: id i by bit i % 32 of word i // 32."""
    last: Int[Array, " seats"]
    """Each row's newest token, which is in no page yet."""
    stopped: Bool[Array, " seats"]


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Chunk:
    """Some tokens of one prompt."""

    tokens: Int[Array, "1 chunk"]
    """From position `start`, where a page begins; any ids after the prompt's end."""
    following: Int[Array, "1 chunk"]
    """The token after each."""
    start: Int[Array, ""]
    last: Int[Array, ""]
    """The index within the chunk of the prompt's last token."""
    seat: Int[Array, ""]
    table: Int[Array, "1 width"]


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Echo:
    """The log-probabilities of a chunk's `following` tokens, and the likeliest in their place."""

    logprobs: Array
    top_ids: Array
    top_logprobs: Array


def seats_for(config: Config, rows: Sequence[Row], written: Sequence[Sequence[int]]) -> Seats:
    """Seats of requests that have written some tokens already, as NumPy arrays.

    With no `rows` at all it is one seat that nobody has.
    """
    size, vocab = max(len(rows), 1), config.vocab_size
    settings = batch_settings(config, rows, size)
    in_prompt: Any = np.zeros((size, vocab), bool)
    counts: Any = np.zeros((size, vocab), np.int32)
    for i, (row, ids) in enumerate(zip(rows, written, strict=True)):
        in_prompt[i, row.prompt] = True
        counts[i] = np.bincount(np.array(ids, int), minlength=vocab)
    wants = [row.settings.logprobs is not None for row in rows] or [False]
    array: Any = np.array  # NumPy's until a program is called with them
    of_each = lambda values, none: array(values or [none], np.int32)  # noqa: E731
    return Seats(
        settings=dataclasses.replace(settings, logprobs=array(wants), allowed=None),
        history=History(
            prompt_lengths=of_each([len(row.prompt) for row in rows], 1),
            in_prompt=in_prompt,
            counts=counts,
            count=of_each([len(ids) for ids in written], 0),
        ),
        allowed=array([[EVERY] * -(-vocab // 32)] * size, np.uint32),
        last=of_each([ids[-1] if ids else 0 for ids in written], 0),
        stopped=array([not rows] * size),
    )


def laid_out_empty(config: Config, count: int) -> Seats:
    """`count` seats that nobody has."""
    one = seats_for(config, [], [])
    return _laid_out(jax.tree.map(lambda x: jnp.repeat(jnp.asarray(x), count, axis=0), one))


def seat_row(seats: Seats, seat: Int[Array, ""], row: Seats) -> Seats:
    """The seats with a request, given as seats of one row, on one of them."""
    return _laid_out(jax.tree.map(lambda all, one: all.at[seat].set(one[0]), seats, row))


def allow(seats: Seats, rows: Int[Array, " B"], words: UInt32[Array, "B words"]) -> Seats:
    """The seats with the masks of `rows`; a row beyond the seats changes nothing."""
    allowed = seats.allowed.at[rows].set(words, mode="drop")
    return _laid_out(dataclasses.replace(seats, allowed=allowed))


def read_chunk(
    params: Params, seats: Seats, pool: Paged, chunk: Chunk, *, draws: bool, echo: bool
) -> tuple[Seats, Paged, TokenBuffer | None, Echo | None, Bool[Array, ""]]:
    """Reads a chunk into its pages, and says whether its keys and values are numbers.

    With `draws` it is a prompt's last one, and the first new token is drawn from the logits after
    it. With `echo` the chunk's log-probabilities come too.
    """
    size = chunk.tokens.shape[1]
    positions = (chunk.start + jnp.arange(size))[None]
    at = None if echo else jnp.clip(chunk.last, 0, size - 1)[None, None]
    past = pool.with_table(chunk.table)
    logits, past = forward(params, chunk.tokens, positions, past, at=at)
    pool = past.with_table(pool.table)
    echoed = buffer = None
    if echo:
        k = min(MAX_LOGPROBS, params.config.vocab_size)
        echoed = Echo(*logprobs_of(logits, chunk.following, k))
        logits = jax.lax.dynamic_slice_in_dim(logits, chunk.last, 1, axis=1)
    if draws:
        rows = chunk.seat[None]
        state, settings = _gathered(seats, rows, past, 1)
        nothing = jnp.zeros(1, jnp.int32)
        state = append_token(state, logits[:, 0], settings, nothing, jnp.array(1))
        seats, buffer = _scattered(seats, rows, state), state.buffer
    places = chunk.start // PAGE + jnp.arange(-(-size // PAGE))
    pages = chunk.table.at[0, places].get(mode="fill", fill_value=pool.pages)
    finite = past.is_finite(pages)
    return _laid_out(seats), laid_out_pool(pool), *map(_everywhere, (buffer, echoed, finite))


def decode_rows(
    params: Params,
    seats: Seats,
    pool: Paged,
    rows: Int[Array, " B"],
    table: Int[Array, "B width"],
    until: Int[Array, " B"],
    *,
    tokens: int,
) -> tuple[Seats, Paged, TokenBuffer]:
    """Takes the seats `rows` on by up to `tokens` tokens, as far as `until` tokens in all.

    A row beyond the seats is padding: it writes nowhere, and stays stopped.
    """
    state, settings = _gathered(seats, rows, pool.with_table(table), tokens)
    taken = state.history.count
    state = decode(params, state, settings, taken, until, tokens_per_check=tokens)
    pool = state.cache.with_table(pool.table)
    seats = _laid_out(_scattered(seats, rows, state))
    return seats, laid_out_pool(pool), _everywhere(state.buffer)


def _gathered(
    seats: Seats, rows: Int[Array, " B"], cache: Paged, round: int
) -> tuple[DecodeState, BatchSettings]:
    """The state of some seats as `decode` takes it; padding is at position 0."""
    here = jax.tree.map(lambda x: x.at[rows].get(mode="clip"), seats)
    real = rows < len(seats.last)
    history = dataclasses.replace(
        here.history,
        prompt_lengths=jnp.where(real, here.history.prompt_lengths, 1),
        count=jnp.where(real, here.history.count, 0),
    )
    vocab = here.history.counts.shape[1]
    state = DecodeState(
        cache=cache,
        history=history,
        last=here.last,
        buffer=TokenBuffer.empty(history.count, here.stopped | ~real, round, vocab),
    )
    settings = dataclasses.replace(
        here.settings,
        allowed=here.allowed,
        logprobs=jnp.any(here.settings.logprobs & real),
    )
    return state, settings


def _scattered(seats: Seats, rows: Int[Array, " B"], state: DecodeState) -> Seats:
    put = lambda all, some: all.at[rows].set(some, mode="drop")  # noqa: E731
    history = seats.history
    return dataclasses.replace(
        seats,
        history=dataclasses.replace(
            history,
            counts=put(history.counts, state.history.counts),
            count=put(history.count, state.history.count),
        ),
        last=put(seats.last, state.last),
        stopped=put(seats.stopped, state.buffer.stopped),
    )


def _laid_out(seats: Seats) -> Seats:
    """The seats as every program leaves them on a mesh, so that none is compiled twice."""
    vocab = seats.history.counts.shape[1]

    def cut(x: Array) -> Array:
        return constrain(x, BY_VOCABULARY if x.shape[1:] == (vocab,) else REPLICATED)

    return jax.tree.map(cut, seats)


def laid_out_pool(pool: Paged) -> Paged:
    """The pool as every program leaves it on a mesh."""
    return jax.tree.map(constrain, pool, pool.specs())


def _everywhere(tree: Any) -> Any:
    return jax.tree.map(lambda x: constrain(x, REPLICATED), tree)
