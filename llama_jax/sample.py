"""From logits to tokens: the order in which settings act, and the jitted loop that decodes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from llama_jax.cache import KVCache
from llama_jax.model import forward
from llama_jax.ops.sampling import draw, min_p_keeps, penalized, top_k_keeps, top_p_keeps
from llama_jax.params import Params
from llama_jax.settings import MAX_LOGPROBS
from llama_jax.sharding import CACHE, REPLICATED, constrain

PREFILL_CHUNK = 512
"""Prompt tokens read at once, which bounds what a long prompt's attention holds."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Request:
    """What each row of a batch asks for: `SamplingSettings` as arrays, all of them traced."""

    temperature: Float[Array, " batch"]
    top_p: Float[Array, " batch"]
    top_k: Int[Array, " batch"]
    min_p: Float[Array, " batch"]
    seed: UInt32[Array, " batch"]
    repetition: Float[Array, " batch"]
    presence: Float[Array, " batch"]
    frequency: Float[Array, " batch"]
    bias: Float[Array, "batch vocab"]
    """Added to the logits; minus infinity where a token is forbidden."""
    stops: Bool[Array, "batch vocab"]
    """Tokens that end a row and are not part of it."""
    least: Int[Array, " batch"]
    """How many tokens a row has before it may stop."""
    budget: Int[Array, " batch"]
    """How many tokens a row may have at most."""
    logprobs: Bool[Array, ""]
    """Whether anybody wants log-probabilities."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Decoding:
    """A batch in the middle of being decoded."""

    cache: KVCache
    prompt_lengths: Int[Array, " batch"]
    in_prompt: Bool[Array, "batch vocab"]
    counts: Int[Array, "batch vocab"]
    """How often each token is among the new ones."""
    last: Int[Array, " batch"]
    """Each row's newest token, which is not in the cache yet."""
    tokens: Int[Array, "batch room"]
    logprobs: Float[Array, "batch room"]
    """Of `tokens`, under the raw logits: before bias, penalties and temperature."""
    top_ids: Int[Array, "batch room k"]
    top_logprobs: Float[Array, "batch room k"]
    count: Int[Array, " batch"]
    """How many of `tokens` a row has."""
    stopped: Bool[Array, " batch"]
    """Whether a row met a stop token, or was told to stop."""


def sample(
    logits: Float[Array, "batch vocab"], request: Request, state: Decoding
) -> Int[Array, " batch"]:
    """The next token of each row, in the order that `SamplingSettings` states."""
    penalty = (request.repetition != 1) | (request.presence != 0) | (request.frequency != 0)
    logits = _where_wanted(penalty, lambda x: _penalized(x, request, state), logits)
    logits = logits + request.bias
    early = (state.count < request.least)[:, None]
    logits = jnp.where(request.stops & early, -jnp.inf, logits)
    greedy = jnp.argmax(logits, axis=-1).astype(jnp.int32)

    def drawn(_: None) -> Int[Array, " batch"]:
        # Below the peak first: a small temperature would make infinities of large logits.
        below = logits - jnp.max(logits, axis=-1, keepdims=True)
        warm = below / jnp.where(request.temperature > 0, request.temperature, 1)[:, None]
        warm = jnp.where(below > -jnp.inf, warm, -jnp.inf)  # not 0 / 0 where 1 / temperature is 0
        for wanted, keeps in (
            (request.top_k > 0, lambda x: top_k_keeps(x, request.top_k)),
            (request.top_p < 1, lambda x: top_p_keeps(jax.nn.softmax(x), request.top_p)),
            (request.min_p > 0, lambda x: min_p_keeps(x, request.min_p)),
        ):
            cut = functools.partial(_keep, keeps)
            warm = _where_wanted(wanted, cut, warm)
        tokens = draw(warm, request.seed, state.prompt_lengths + state.count)
        return jnp.where(request.temperature > 0, tokens, greedy)

    return jax.lax.cond(jnp.any(request.temperature > 0), drawn, lambda _: greedy, None)


def prefill(
    params: Params,
    prompts: Int[Array, "batch time"],
    lengths: Int[Array, " batch"],
    request: Request,
    *,
    room: int,
    slots: int,
) -> Decoding:
    """Reads prompts, padded on the right with anything, and decides each row's first token.

    `room` is how many tokens a row can have at most, `slots` how many positions.
    """
    cache = KVCache.empty(params.config, batch=len(prompts), slots=slots, dtype=params.dtype)
    width = min(prompts.shape[1], PREFILL_CHUNK)
    return resume(params, cache, prompts, lengths, jnp.array(0), request, room=room, width=width)


def resume(
    params: Params,
    cache: KVCache,
    texts: Int[Array, "batch time"],
    lengths: Int[Array, " batch"],
    read: Int[Array, ""],
    request: Request,
    *,
    room: int,
    width: int,
) -> Decoding:
    """`prefill` where the cache already holds the first `read` positions of every text.

    The rest is read `width` tokens at a time.
    """
    cache = jax.tree.map(lambda x: constrain(x, CACHE), cache)
    logits, cache = _read(params, cache, texts, lengths, read, width)
    batch, vocab = logits.shape
    rows, inside = jnp.arange(batch)[:, None], jnp.arange(texts.shape[1]) < lengths[:, None]
    k = min(MAX_LOGPROBS, vocab)
    state = Decoding(
        cache=cache,
        prompt_lengths=lengths,
        in_prompt=jnp.zeros((batch, vocab), bool).at[rows, texts].max(inside),
        counts=jnp.zeros((batch, vocab), jnp.int32),
        last=jnp.zeros(batch, jnp.int32),
        tokens=jnp.zeros((batch, room), jnp.int32),
        logprobs=jnp.zeros((batch, room)),
        top_ids=jnp.zeros((batch, room, k), jnp.int32),
        top_logprobs=jnp.zeros((batch, room, k)),
        count=jnp.zeros(batch, jnp.int32),
        stopped=jnp.zeros(batch, bool),
    )
    return _fetchable(_decide(state, logits, request, jnp.array(1)))


def advance(
    params: Params, state: Decoding, request: Request, until: Int[Array, ""], *, chunk: int
) -> Decoding:
    """Decodes until every row has stopped, spent its budget, or has `until` tokens.

    The loop asks only once every `chunk` tokens whether to go on: on a GPU each question waits
    for the device. Rows that have ended sit the rest of a chunk out.
    """

    def step(state: Decoding, _: Any) -> tuple[Decoding, None]:
        position = state.prompt_lengths + state.count - 1
        logits, cache = forward(params, state.last[:, None], position[:, None], state.cache)
        state = dataclasses.replace(state, cache=cache)
        return _decide(state, logits[:, 0], request, until), None

    decoded = jax.lax.while_loop(
        lambda state: jnp.any(_running(state, request, until)),
        lambda state: jax.lax.scan(step, state, length=chunk)[0],
        state,
    )
    return _fetchable(decoded)


def _fetchable(state: Decoding) -> Decoding:
    """The same, with what the host reads on every device, and so in every process."""
    names = ("tokens", "count", "stopped", "logprobs", "top_ids", "top_logprobs")
    whole: dict[str, Any] = {name: constrain(getattr(state, name), REPLICATED) for name in names}
    return dataclasses.replace(state, **whole)


@functools.partial(jax.jit, static_argnames=("room", "slots", "chunk"))
def decode(
    params: Params,
    prompts: Int[Array, "batch time"],
    lengths: Int[Array, " batch"],
    request: Request,
    *,
    room: int,
    slots: int,
    chunk: int,
) -> Decoding:
    """Prompts to finished rows, in one program: prefill, then the loop."""
    start = prefill(params, prompts, lengths, request, room=room, slots=slots)
    return advance(params, start, request, jnp.array(room), chunk=chunk)


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


def _running(state: Decoding, request: Request, until: Int[Array, ""]) -> Bool[Array, " batch"]:
    return ~state.stopped & (state.count < jnp.minimum(request.budget, until))


def _decide(
    state: Decoding, logits: Float[Array, "batch vocab"], request: Request, until: Int[Array, ""]
) -> Decoding:
    """Adds a token to each running row, or ends the row if the token is a stop."""
    token = sample(logits, request, state)
    running = _running(state, request, until)
    rows = jnp.arange(token.shape[0])
    stops = running & request.stops[rows, token]
    keeps = running & ~stops
    # A row that keeps nothing writes beyond the end, which drops it.
    place = rows, jnp.where(keeps, state.count, state.tokens.shape[1])
    chosen, top_ids, top_logprobs = jax.lax.cond(
        request.logprobs,
        lambda: logprobs_of(logits, token, state.top_ids.shape[-1]),
        lambda: (state.logprobs[:, 0], state.top_ids[:, 0], state.top_logprobs[:, 0]),  # unread
    )
    return dataclasses.replace(
        state,
        counts=state.counts.at[rows, token].add(keeps),
        last=jnp.where(keeps, token, state.last),
        tokens=state.tokens.at[place].set(token, mode="drop"),
        logprobs=state.logprobs.at[place].set(chosen, mode="drop"),
        top_ids=state.top_ids.at[place].set(top_ids, mode="drop"),
        top_logprobs=state.top_logprobs.at[place].set(top_logprobs, mode="drop"),
        count=state.count + keeps,
        stopped=state.stopped | stops,
    )


def logprobs_of(
    logits: Float[Array, "*batch vocab"], token: Int[Array, "*batch"], k: int
) -> tuple[Float[Array, "*batch"], Int[Array, "*batch k"], Float[Array, "*batch k"]]:
    """The log-softmax of raw logits at `token`, and the `k` likeliest ids with theirs."""
    logprobs = jax.nn.log_softmax(logits, axis=-1)
    top_logprobs, top_ids = jax.lax.top_k(logprobs, k)
    chosen = jnp.take_along_axis(logprobs, token[..., None], axis=-1)[..., 0]
    return chosen, top_ids, top_logprobs


def _penalized(logits: Array, request: Request, state: Decoding) -> Array:
    penalties = request.repetition, request.presence, request.frequency
    return penalized(logits, state.in_prompt, state.counts, *penalties)


def _keep(keeps: Callable[[Array], Array], logits: Array) -> Array:
    return jnp.where(keeps(logits), logits, -jnp.inf)


def _where_wanted(
    wanted: Bool[Array, " batch"], change: Callable[[Array], Array], x: Array
) -> Array:
    """`change(x)`, computed only if a row wants it; it leaves the other rows alone."""
    return jax.lax.cond(jnp.any(wanted), change, lambda x: x, x)
