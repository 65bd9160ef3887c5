"""The two programs that decode: `prefill` reads prompts, `decode` takes all rows on.

Each is compiled once for a number of rows and a length: of the prompts, and of the cache. No
setting of a user's is a shape, so no setting compiles anything.

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

from llama_jax.generation.limits import MAX_LOGPROBS, ROUND_TOKENS
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
    """Reads texts, padded on the right with anything, and decides each row's first token.

    The cache holds the first `read` positions of every text already; a `NewCache` none. The rest
    is read chunk by chunk, `tokens_per_read` tokens of each text at a time.
    """
    past = cache.empty(params.config) if isinstance(cache, NewCache) else cache
    past = jax.tree.map(constrain, past, past.specs())
    chunk = functools.partial(read_chunk, params, texts, lengths, tokens_per_read)
    reading = read, jnp.zeros((len(texts), params.config.vocab_size)), past
    whole = past.fresh and texts.shape[1] <= tokens_per_read
    if past.fresh:  # the first chunk of a new text has no past, which is another program
        reading = chunk(*reading)
    if not whole:
        unread = lambda state: state[0] < jnp.max(lengths)  # noqa: E731
        reading = jax.lax.while_loop(unread, lambda state: chunk(*state), reading)
    _, logits, past = reading
    state = _begun(past, texts, lengths, logits.shape[1])
    return _fetchable(_decided(state, logits, settings, jnp.zeros_like(lengths), jnp.array(1)))


def read_chunk(
    params: Params,
    texts: Int[Array, "batch time"],
    lengths: Int[Array, " batch"],
    width: int,
    start: Int[Array, ""],
    logits: Float[Array, "batch vocab"],
    cache: Any,
) -> tuple[Array, Array, Any]:
    """Reads `width` tokens of each text from `start`, and keeps the logits after its last token.

    Returns what the next chunk is given: its start, the logits so far, and the cache.
    """
    batch, time = texts.shape
    last = lengths[:, None] - 1
    positions = jnp.broadcast_to(start + jnp.arange(width), (batch, width))
    # Beyond a text's end any token will do: its slot is overwritten before it is read.
    tokens = jnp.take_along_axis(texts, jnp.minimum(positions, time - 1), axis=1)
    inside = jnp.clip(last - start, 0, width - 1)
    found, cache = forward(params, tokens, positions, cache, at=inside)
    here = (start <= last) & (last < start + width)
    return start + width, jnp.where(here, found[:, 0], logits), cache


def decode(
    params: Params,
    state: DecodeState,
    settings: BatchSettings,
    taken: Int[Array, " batch"],
    until: Int[Array, ""],
    *,
    tokens_per_check: int,
) -> DecodeState:
    """Decodes until each row has ended or has `until` tokens, or the buffer or the cache is full.

    `taken` is how many tokens of each row the host has: their places in the buffer are free.

    Once every `tokens_per_check` tokens the loop asks whether to go on, and whether all rows are
    greedy: on a GPU a question waits for the device. Rows that have ended idle until then.
    """

    def step(branch: Branch, state: DecodeState, _: Any) -> tuple[DecodeState, None]:
        position = _position(state)
        logits, cache = forward(params, state.last[:, None], position[:, None], state.cache)
        state = dataclasses.replace(state, cache=cache)
        return _decided(state, logits[:, 0], settings, taken, until, branch), None

    def goes_on(state: DecodeState) -> Bool[Array, ""]:
        wanted = _is_wanted(state, settings, taken, until)
        return jnp.any(wanted) & ~jnp.any(wanted & ~state.cache.fits(_position(state)))

    def loop(branch: Branch, here: Bool[Array, ""], state: DecodeState) -> DecodeState:
        some = functools.partial(
            jax.lax.scan, functools.partial(step, branch), length=tokens_per_check
        )
        return jax.lax.while_loop(lambda s: here & goes_on(s), lambda s: some(s)[0], state)

    if tokens_per_check == 1:
        return _fetchable(loop(jax.lax.cond, jnp.array(True), state))
    # Two loops of which one runs: a branch inside a loop would make the host wait, or copy a cache.
    greedy = is_greedy(settings)
    return _fetchable(loop(both, ~greedy, loop(second, greedy, state)))


def _begun(
    cache: Cache, texts: Int[Array, "batch time"], lengths: Int[Array, " batch"], vocab: int
) -> DecodeState:
    """The state of texts that were read, without a new token."""
    batch, k = len(texts), min(MAX_LOGPROBS, vocab)
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
        buffer=TokenBuffer(
            tokens=jnp.zeros((batch, ROUND_TOKENS), jnp.int32),
            logprobs=jnp.zeros((batch, ROUND_TOKENS)),
            top_ids=jnp.zeros((batch, ROUND_TOKENS, k), jnp.int32),
            top_logprobs=jnp.zeros((batch, ROUND_TOKENS, k)),
            count=nothing,
            stopped=jnp.zeros(batch, bool),
        ),
    )


def _decided(
    state: DecodeState,
    logits: Float[Array, "batch vocab"],
    settings: BatchSettings,
    taken: Int[Array, " batch"],
    until: Int[Array, ""],
    branch: Branch = jax.lax.cond,
) -> DecodeState:
    """The state with a token more in each running row, or the row ended.

    It ends at a stop id, and where its logits are NaN or infinite, so that there is no next token.
    """
    history, buffer = state.history, state.buffer
    token = sample(logits, settings, history, branch=branch)
    running = _is_wanted(state, settings, taken, until) & state.cache.fits(_position(state))
    is_stop = jnp.take_along_axis(settings.stop_id_mask, token[:, None], axis=1)[:, 0]
    keeps = running & ~is_stop & (token != NO_TOKEN)
    # A row that is over writes beyond the end, which drops it. What ends a row is written too.
    place = jnp.where(running, history.count - taken, ROUND_TOKENS)
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


def _is_wanted(
    state: DecodeState,
    settings: BatchSettings,
    taken: Int[Array, " batch"],
    until: Int[Array, ""],
) -> Bool[Array, " batch"]:
    """Which rows are to have a token more before the host looks."""
    end = jnp.minimum(jnp.minimum(settings.max_new_tokens, until), taken + ROUND_TOKENS)
    return ~state.buffer.stopped & (state.history.count < end)


# Row by row, so that XLA sees that rows stay where they are when the batch is cut.
_put = jax.vmap(lambda row, place, value: row.at[place].set(value, mode="drop"))
_add = jax.vmap(lambda row, place, value: row.at[place].add(value))
_mark = jax.vmap(lambda row, places, values: row.at[places].max(values))


def _fetchable(state: DecodeState) -> DecodeState:
    """The same, with the buffer on every device of a mesh, and so in every process."""
    whole = jax.tree.map(lambda x: constrain(x, REPLICATED), state.buffer)
    return dataclasses.replace(state, buffer=whole)
