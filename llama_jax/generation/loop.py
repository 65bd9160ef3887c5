"""The two programs that decode: one reads prompts, the other takes rows on, round by round.

Each is compiled once for a number of rows and a length: of the prompts, and of the cache. What a
user sets changes neither.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from llama_jax.generation.sample import (
    Choice,
    Request,
    Written,
    always,
    asks_for_more,
    logprobs_of,
    never,
    sample,
)
from llama_jax.generation.settings import MAX_LOGPROBS
from llama_jax.generation.stops import NOTHING, Ending, push_tokens
from llama_jax.model.cache import KVCache
from llama_jax.model.transformer import forward
from llama_jax.sharding.arrays import CACHE, NEXT, REPLICATED, constrain
from llama_jax.weights.params import Params

ROUND = 256
"""Tokens that a row can get before the host takes them."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Round:
    """What a round decided, to be taken by the host."""

    tokens: Int[Array, "batch round"]
    logprobs: Float[Array, "batch round"]
    """Of `tokens`, under the raw logits: before bias, penalties and temperature."""
    top_ids: Int[Array, "batch round k"]
    top_logprobs: Float[Array, "batch round k"]
    count: Int[Array, " batch"]
    """How many tokens a row has, those of earlier rounds included."""
    stopped: Bool[Array, " batch"]
    """Whether a row met a stop token or a stop string."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Decoding:
    """A batch in the middle of being decoded."""

    cache: KVCache
    written: Written
    last: Int[Array, " batch"]
    """Each row's newest token, which is not in the cache yet."""
    ending: Ending
    at_start: Bool[Array, " batch"]
    """Whether a row's text has not begun, for the spelling of its next token."""
    round: Round


def prefill(
    params: Params,
    prompts: Int[Array, "batch time"],
    lengths: Int[Array, " batch"],
    request: Request,
    *,
    width: int,
    slots: int,
    dtype: Any,
) -> Decoding:
    """Reads prompts, padded on the right with anything, and decides each row's first token.

    They are read `width` tokens at a time. `slots` is how many positions the cache has, of
    `dtype`; `KVCache.grown` gives it more.
    """
    cache = KVCache.empty(params.config, batch=len(prompts), slots=slots, dtype=dtype)
    return resume(params, cache, prompts, lengths, jnp.array(0), request, width=width)


def resume(
    params: Params,
    cache: KVCache,
    texts: Int[Array, "batch time"],
    lengths: Int[Array, " batch"],
    read: Int[Array, ""],
    request: Request,
    *,
    width: int,
) -> Decoding:
    """`prefill` where the cache already holds the first `read` positions of every text.

    The rest is read `width` tokens at a time.
    """
    cache = jax.tree.map(lambda x: constrain(x, CACHE), cache)
    logits, cache = _read(params, cache, texts, lengths, read, width)
    batch, vocab = logits.shape
    inside = jnp.arange(texts.shape[1]) < lengths[:, None]
    nothing = jnp.zeros(batch, jnp.int32)
    k = min(MAX_LOGPROBS, vocab)
    state = Decoding(
        cache=cache,
        written=Written(
            prompt_lengths=lengths,
            in_prompt=constrain(_mark(jnp.zeros((batch, vocab), bool), texts, inside), NEXT),
            counts=constrain(jnp.zeros((batch, vocab), jnp.int32), NEXT),
            count=nothing,
        ),
        last=nothing,
        ending=jnp.full((batch, request.stop_strings.heads.shape[1]), NOTHING, jnp.int16),
        at_start=request.stop_strings.at_start,
        round=Round(
            tokens=jnp.zeros((batch, ROUND), jnp.int32),
            logprobs=jnp.zeros((batch, ROUND)),
            top_ids=jnp.zeros((batch, ROUND, k), jnp.int32),
            top_logprobs=jnp.zeros((batch, ROUND, k)),
            count=nothing,
            stopped=jnp.zeros(batch, bool),
        ),
    )
    return _fetchable(_decide(state, logits, request, nothing, jnp.array(1)))


def advance(
    params: Params,
    state: Decoding,
    request: Request,
    taken: Int[Array, " batch"],
    until: Int[Array, ""],
    *,
    chunk: int,
) -> Decoding:
    """Decodes until every row has ended or has `until` tokens, or the round or the cache is full.

    `taken` is how many tokens of each row the host has: their places are free again.

    The loop asks only once every `chunk` tokens whether to go on, and whether any row wants more
    than its likeliest token: on a GPU each question waits for the device. Rows that have ended sit
    the rest of a chunk out.
    """

    def step(choose: Choice, state: Decoding, _: Any) -> tuple[Decoding, None]:
        position = _position(state)
        logits, cache = forward(params, state.last[:, None], position[:, None], state.cache)
        state = dataclasses.replace(state, cache=cache)
        return _decide(state, logits[:, 0], request, taken, until, choose), None

    def goes_on(state: Decoding) -> Bool[Array, ""]:
        wanted = _wanted(state, request, taken, until)
        return jnp.any(wanted) & ~jnp.any(wanted & ~_fits(state))

    def loop(choose: Choice, here: Bool[Array, ""], state: Decoding) -> Decoding:
        some = functools.partial(jax.lax.scan, functools.partial(step, choose), length=chunk)
        return jax.lax.while_loop(lambda s: here & goes_on(s), lambda s: some(s)[0], state)

    if chunk == 1:
        return _fetchable(loop(jax.lax.cond, jnp.array(True), state))
    # Two loops of which one runs: a choice inside a loop would make the host wait, or copy a cache.
    more = asks_for_more(request)
    return _fetchable(loop(always, more, loop(never, ~more, state)))


def _read(
    params: Params,
    cache: KVCache,
    texts: Int[Array, "batch time"],
    lengths: Int[Array, " batch"],
    start: Int[Array, ""],
    width: int,
) -> tuple[Float[Array, "batch vocab"], KVCache]:
    """Reads texts into the cache, chunk by chunk; the logits after each row's last token."""
    batch, time = texts.shape
    last = lengths[:, None] - 1

    def one(start: Array, logits: Array, cache: KVCache) -> tuple[Array, Array, KVCache]:
        positions = jnp.broadcast_to(start + jnp.arange(width), (batch, width))
        # Beyond the texts' end any token will do: its slot is overwritten before it is read.
        tokens = jnp.take_along_axis(texts, jnp.minimum(positions, time - 1), axis=1)
        inside = jnp.clip(last - start, 0, width - 1)
        found, cache = forward(params, tokens, positions, cache, at=inside)
        here = (start <= last) & (last < start + width)
        return start + width, jnp.where(here, found[:, 0], logits), cache

    state = start, jnp.zeros((batch, params.config.vocab_size)), cache
    if cache.fresh:  # the first chunk of a new text reads no slot, which is another program
        state = one(*state)
    if cache.fresh and time <= width:
        return state[1:]
    unread = lambda state: state[0] < jnp.max(lengths)  # noqa: E731
    return jax.lax.while_loop(unread, lambda state: one(*state), state)[1:]


def _position(state: Decoding) -> Int[Array, " batch"]:
    """Where each row's newest token stands in its text."""
    return state.written.prompt_lengths + state.written.count - 1


def _fits(state: Decoding) -> Bool[Array, " batch"]:
    return _position(state) < state.cache.slots


def _wanted(
    state: Decoding, request: Request, taken: Int[Array, " batch"], until: Int[Array, ""]
) -> Bool[Array, " batch"]:
    """Rows that are to have a token more in this round."""
    least = jnp.minimum(jnp.minimum(request.budget, until), taken + ROUND)
    return ~state.round.stopped & (state.written.count < least)


def _decide(
    state: Decoding,
    logits: Float[Array, "batch vocab"],
    request: Request,
    taken: Int[Array, " batch"],
    until: Int[Array, ""],
    choose: Choice = jax.lax.cond,
) -> Decoding:
    """Adds a token to each running row, or ends the row if the token is a stop."""
    written, round = state.written, state.round
    token = sample(logits, request, written, choose=choose)
    running = _wanted(state, request, taken, until) & _fits(state)
    ends = running & jnp.take_along_axis(request.stops, token[:, None], axis=1)[:, 0]
    keeps = running & ~ends
    met, ending, at_start = _push(request, token, state, choose)
    # A row that keeps nothing writes beyond the end, which drops it.
    place = jnp.where(keeps, written.count - taken, ROUND)
    chosen, top_ids, top_logprobs = choose(
        request.logprobs,
        lambda: logprobs_of(logits, token, round.top_ids.shape[-1]),
        lambda: (round.logprobs[:, 0], round.top_ids[:, 0], round.top_logprobs[:, 0]),  # unread
    )
    count = written.count + keeps
    counts = constrain(_add(written.counts, token, keeps), NEXT)
    return Decoding(
        cache=state.cache,
        written=dataclasses.replace(written, counts=counts, count=count),
        last=jnp.where(keeps, token, state.last),
        ending=jnp.where(keeps[:, None], ending, state.ending),
        at_start=jnp.where(keeps, at_start, state.at_start),
        round=Round(
            tokens=_put(round.tokens, place, token),
            logprobs=_put(round.logprobs, place, chosen),
            top_ids=_put(round.top_ids, place, top_ids),
            top_logprobs=_put(round.top_logprobs, place, top_logprobs),
            count=count,
            stopped=round.stopped | ends | (keeps & met),
        ),
    )


# Row by row, so that XLA sees rows stay where they are when the batch is cut.
_put = jax.vmap(lambda row, place, value: row.at[place].set(value, mode="drop"))
_add = jax.vmap(lambda row, place, value: row.at[place].add(value))
_mark = jax.vmap(lambda row, places, values: row.at[places].max(values))


def _push(
    request: Request, token: Int[Array, " batch"], state: Decoding, choose: Choice
) -> tuple[Bool[Array, " batch"], Ending, Bool[Array, " batch"]]:
    """Whether the token completes a stop string, looked at only if a row has any."""
    return choose(
        jnp.any(request.stop_strings.wanted),
        lambda: push_tokens(request.stop_strings, token, state.ending, state.at_start),
        lambda: (jnp.zeros(token.shape, bool), state.ending, state.at_start),
    )


def _fetchable(state: Decoding) -> Decoding:
    """The same, with the round on every device of a mesh, and so in every process."""
    whole = jax.tree.map(lambda x: constrain(x, REPLICATED), state.round)
    return dataclasses.replace(state, round=whole)
