"""The two programs that decode: `prefill` reads prompts, `decode` decodes all rows.

`prefill` is compiled once for each (rows, prompt length, cache slots), `decode` for each (rows,
cache slots). Settings are traced, so changing one compiles nothing.

    prefill  texts [4, 32], lengths [20, 7, 5, 1] -> a DecodeState whose rows have one new token
    decode   the state -> the state, up to 256 tokens a row later
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from llama_jax.generation.limits import ROUND_TOKENS
from llama_jax.generation.sample import (
    NO_TOKEN,
    BatchSettings,
    Branch,
    History,
    both,
    is_greedy,
    logprobs_of,
    sample,
    second,
)
from llama_jax.generation.state import DecodeState, NewCache, TokenBuffer
from llama_jax.model.cache import Cache
from llama_jax.model.transformer import forward
from llama_jax.sharding.arrays import constrain
from llama_jax.sharding.specs import NEXT_LOGITS
from llama_jax.weights.params import Params
from llama_jax.weights.table import REPLICATED

Reading = tuple[Int[Array, ""], Float[Array, "batch vocab"], Any]
"""Prompts that are being read: where the next chunk starts, the logits so far, and the cache."""


def prefill(
    params: Params,
    cache: Cache | NewCache,
    texts: Int[Array, "batch time"],
    lengths: Int[Array, " batch"],
    read: Int[Array, ""],
    settings: BatchSettings,
    *,
    tokens_per_read: int,
) -> DecodeState:
    """Reads prompts into the cache and samples each row's first token.

    `texts` are token ids, padded on the right with any ids. The cache already holds their first
    `read` positions; a `NewCache` holds none. The rest is read in chunks of `tokens_per_read`
    tokens of each row.
    """
    past = cache.empty(params.config) if isinstance(cache, NewCache) else cache
    past = jax.tree.map(constrain, past, past.specs())
    chunk = functools.partial(read_chunk, params, texts, lengths, tokens_per_read)
    reading: Reading = read, jnp.zeros((len(texts), params.config.vocab_size)), past
    whole = past.fresh and texts.shape[1] <= tokens_per_read
    if past.fresh:  # the first chunk has no past, so it is another program
        reading = chunk(reading)
    if not whole:
        unread = lambda state: state[0] < jnp.max(lengths)  # noqa: E731
        reading = jax.lax.while_loop(unread, chunk, reading)
    _, logits, past = reading
    state = _initial_state(past, texts, lengths, logits.shape[1])
    return _replicated_buffer(
        append_token(state, logits, settings, jnp.zeros_like(lengths), jnp.array(1))
    )


def read_chunk(
    params: Params,
    texts: Int[Array, "batch time"],
    lengths: Int[Array, " batch"],
    chunk_tokens: int,
    reading: Reading,
) -> Reading:
    """Reads `chunk_tokens` of each row from a start, and keeps the logits after its last token."""
    start, logits, cache = reading
    batch, time = texts.shape
    last = lengths[:, None] - 1
    positions = jnp.broadcast_to(start + jnp.arange(chunk_tokens), (batch, chunk_tokens))
    # Beyond a row's end any token will do: its slot is overwritten before it is read.
    tokens = jnp.take_along_axis(texts, jnp.minimum(positions, time - 1), axis=1)
    inside = jnp.clip(last - start, 0, chunk_tokens - 1)
    found, cache = forward(params, tokens, positions, cache, at=inside)
    here = (start <= last) & (last < start + chunk_tokens)
    return start + chunk_tokens, jnp.where(here, found[:, 0], logits), cache


def decode(
    params: Params,
    state: DecodeState,
    settings: BatchSettings,
    taken: Int[Array, " batch"],
    until: Int[Array, "*rows"],
    *,
    tokens_per_check: int,
) -> DecodeState:
    """Decodes until each row has ended or has `until` tokens, or the buffer or the cache is full.

    `until` is one for all rows, or one each.

    The host has `taken` tokens of each row, so their places in the buffer are free.

    The loop checks its condition every `tokens_per_check` tokens, because on a GPU a check waits
    for the device. Rows that have ended run on until then, and their tokens are dropped.
    """

    def step(branch: Branch, _: Any, state: DecodeState) -> DecodeState:
        position = _position(state)
        logits, cache = forward(params, state.last[:, None], position[:, None], state.cache)
        state = dataclasses.replace(state, cache=cache)
        return append_token(state, logits[:, 0], settings, taken, until, branch)

    def goes_on(state: DecodeState) -> Bool[Array, ""]:
        wanted = _needs_token(state, settings, taken, until)
        return jnp.any(wanted) & ~jnp.any(wanted & ~state.cache.fits(_position(state)))

    def loop(branch: Branch, here: Bool[Array, ""], state: DecodeState) -> DecodeState:
        some = functools.partial(
            jax.lax.fori_loop, 0, tokens_per_check, functools.partial(step, branch)
        )
        return jax.lax.while_loop(lambda state: here & goes_on(state), some, state)

    if tokens_per_check == 1:
        return _replicated_buffer(loop(jax.lax.cond, jnp.array(True), state))
    # Two loops, of which one runs no step: a `cond` inside a loop would wait for the host, or copy
    # the cache.
    greedy = is_greedy(settings)
    return _replicated_buffer(loop(both, ~greedy, loop(second, greedy, state)))


def _initial_state(
    cache: Cache, texts: Int[Array, "batch time"], lengths: Int[Array, " batch"], vocab: int
) -> DecodeState:
    """The state of prompts that were read, before the first new token."""
    batch = len(texts)
    inside = jnp.arange(texts.shape[1]) < lengths[:, None]
    nothing = jnp.zeros(batch, jnp.int32)
    return DecodeState(
        cache=cache,
        history=History(
            prompt_lengths=lengths,
            in_prompt=constrain(_mark(jnp.zeros((batch, vocab), bool), texts, inside), NEXT_LOGITS),
            counts=constrain(jnp.zeros((batch, vocab), jnp.int32), NEXT_LOGITS),
            count=nothing,
        ),
        last=nothing,
        buffer=TokenBuffer.empty(nothing, jnp.zeros(batch, bool), ROUND_TOKENS, vocab),
    )


def append_token(
    state: DecodeState,
    logits: Float[Array, "batch vocab"],
    settings: BatchSettings,
    taken: Int[Array, " batch"],
    until: Int[Array, "*rows"],
    branch: Branch = jax.lax.cond,
) -> DecodeState:
    """Samples one token for each running row and appends it, or marks the row as stopped.

    A row stops at a stop id, and where its logits are NaN or infinite.
    """
    history, buffer = state.history, state.buffer
    token = sample(logits, settings, history, branch=branch)
    running = _needs_token(state, settings, taken, until) & state.cache.fits(_position(state))
    is_stop = jnp.take_along_axis(settings.stop_id_mask, token[:, None], axis=1)[:, 0]
    keeps = running & ~is_stop & (token != NO_TOKEN)
    # A row that has ended writes beyond the buffer, which drops it. A stop id is written too.
    place = jnp.where(running, history.count - taken, buffer.tokens.shape[1])
    chosen, top_ids, top_logprobs = branch(
        settings.logprobs,
        lambda: logprobs_of(logits, token, buffer.top_ids.shape[-1]),
        lambda: (buffer.logprobs[:, 0], buffer.top_ids[:, 0], buffer.top_logprobs[:, 0]),  # unread
    )
    count = history.count + keeps
    counts = constrain(_add(history.counts, token, keeps), NEXT_LOGITS)
    return DecodeState(
        cache=state.cache,
        history=dataclasses.replace(history, counts=counts, count=count),
        last=jnp.where(keeps, token, state.last),
        buffer=TokenBuffer(
            tokens=_put(buffer.tokens, place, token),
            logprobs=_put(buffer.logprobs, place, chosen),
            top_ids=_put(buffer.top_ids, place, top_ids),
            top_logprobs=_put(buffer.top_logprobs, place, top_logprobs),
            count=count,
            stopped=buffer.stopped | (running & ~keeps),
        ),
    )


def _position(state: DecodeState) -> Int[Array, " batch"]:
    """The position of each row's newest token."""
    return state.history.prompt_lengths + state.history.count - 1


def _needs_token(
    state: DecodeState,
    settings: BatchSettings,
    taken: Int[Array, " batch"],
    until: Int[Array, "*rows"],
) -> Bool[Array, " batch"]:
    """Which rows need another token in this call."""
    room = taken + state.buffer.tokens.shape[1]
    end = jnp.minimum(jnp.minimum(settings.max_new_tokens, until), room)
    return ~state.buffer.stopped & (state.history.count < end)


# Row by row, so that XLA sees that rows stay on their devices when the batch is sharded.
_put = jax.vmap(lambda row, place, value: row.at[place].set(value, mode="drop"))
_add = jax.vmap(lambda row, place, value: row.at[place].add(value))
_mark = jax.vmap(lambda row, places, values: row.at[places].max(values))


def _replicated_buffer(state: DecodeState) -> DecodeState:
    """The state with its buffer replicated over the mesh, so that every process can fetch it."""
    whole = jax.tree.map(lambda x: constrain(x, REPLICATED), state.buffer)
    return dataclasses.replace(state, buffer=whole)
