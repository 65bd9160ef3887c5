"""From logits to tokens: Meta's sampling rule, and the jitted loop that repeats it."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from llama_jax.cache import KVCache
from llama_jax.model import forward
from llama_jax.params import Params
from llama_jax.sharding import CACHE, constrain


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Request:
    """What each row of a batch asks for. All of it is traced: changing a value compiles nothing."""

    temperature: Float[Array, " batch"]
    """0 takes the likeliest token."""
    top_p: Float[Array, " batch"]
    seed: UInt32[Array, " batch"]
    budget: Int[Array, " batch"]
    """How many tokens a row may have, at most the loop's `max_new_tokens`."""
    stop_ids: Int[Array, " stops"]
    """Tokens that end a row and are not part of it."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Decoding:
    """A batch in the middle of being decoded."""

    cache: KVCache
    prompt_lengths: Int[Array, " batch"]
    last: Int[Array, " batch"]
    """Each row's newest token, which is not in the cache yet."""
    tokens: Int[Array, "batch max_new_tokens"]
    count: Int[Array, " batch"]
    """How many of `tokens` a row has."""
    stopped: Bool[Array, " batch"]
    """Whether a row met a stop token."""


def sample(
    logits: Float[Array, "batch vocab"], request: Request, positions: Int[Array, " batch"]
) -> Int[Array, " batch"]:
    """One token per row, for the given positions of the rows' texts.

    Temperature divides the logits, top-p cuts what remains, then one draw. The draw is a function
    of the row's seed and position alone: neither the other rows nor the row's place matter.
    """
    greedy = jnp.argmax(logits, axis=-1).astype(jnp.int32)

    def draw(_: None) -> Int[Array, " batch"]:
        warm = logits / jnp.where(request.temperature > 0, request.temperature, 1.0)[:, None]
        kept = top_p_keeps(jax.nn.softmax(warm, axis=-1), request.top_p)
        drawn = jax.vmap(_draw)(jnp.where(kept, warm, -jnp.inf), request.seed, positions)
        return jnp.where(request.temperature > 0, drawn, greedy)

    return jax.lax.cond(jnp.any(request.temperature > 0), draw, lambda _: greedy, None)


def _draw(logits: Float[Array, " vocab"], seed: Array, position: Array) -> Int[Array, ""]:
    key = jax.random.fold_in(jax.random.key(seed), position)
    return jax.random.categorical(key, logits).astype(jnp.int32)


def top_p_keeps(
    probs: Float[Array, "batch vocab"], top_p: Float[Array, " batch"]
) -> Bool[Array, "batch vocab"]:
    """Which tokens survive top-p, by Meta's rule.

    A token goes when those before it, in descending order of probability, sum to more than
    `top_p`. So the one that crosses it stays, the first always stays, and of equals the lower
    id comes first. Nothing is sorted: the order's cut is found by bisection on the bits of a
    probability, which order non-negative floats as they do integers.
    """
    above = functools.partial(_mass_above, probs)

    def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds  # the cut lies in (low, high]
        middle = low + (high - low) // 2
        enough = above(middle) <= top_p
        return jnp.where(enough, low, middle), jnp.where(enough, middle, high)

    one = jax.lax.bitcast_convert_type(jnp.float32(2.0), jnp.int32)
    bounds = jnp.full(top_p.shape, -1), jnp.full(top_p.shape, one)
    _, bits = jax.lax.fori_loop(0, 31, halve, bounds)
    cut = jax.lax.bitcast_convert_type(bits, jnp.float32)[:, None]
    ties = probs == cut
    before_in_tie = (jnp.cumsum(ties, axis=-1) - 1) * cut
    tie_stays = above(bits)[:, None] + before_in_tie <= top_p[:, None]
    # With top_p = 1 nothing goes, though a rounded sum may exceed 1.
    return (probs > cut) | (ties & tie_stays) | (top_p >= 1)[:, None]


def _mass_above(
    probs: Float[Array, "batch vocab"], bits: Int[Array, " batch"]
) -> Float[Array, " batch"]:
    value = jax.lax.bitcast_convert_type(bits, jnp.float32)[:, None]
    return jnp.sum(jnp.where(probs > value, probs, 0), axis=-1)


def prefill(
    params: Params,
    prompts: Int[Array, "batch time"],
    lengths: Int[Array, " batch"],
    request: Request,
    *,
    max_new_tokens: int,
    slots: int,
) -> Decoding:
    """Reads the prompts, padded on the right with anything, and decides each row's first token."""
    batch, time = prompts.shape
    cache = KVCache.empty(params.config, batch=batch, slots=slots, dtype=params.dtype)
    cache = jax.tree.map(lambda x: constrain(x, CACHE), cache)
    positions = jnp.broadcast_to(jnp.arange(time), prompts.shape)
    logits, cache = forward(params, prompts, positions, cache, at=lengths[:, None] - 1)
    nothing = Decoding(
        cache=cache,
        prompt_lengths=lengths,
        last=jnp.zeros(batch, jnp.int32),
        tokens=jnp.zeros((batch, max_new_tokens), jnp.int32),
        count=jnp.zeros(batch, jnp.int32),
        stopped=jnp.zeros(batch, bool),
    )
    return _record(nothing, sample(logits[:, 0], request, lengths), request, jnp.array(1))


def advance(
    params: Params, decoding: Decoding, request: Request, until: Int[Array, ""], *, chunk: int
) -> Decoding:
    """Decodes until every row has stopped, spent its budget, or has `until` tokens.

    The loop asks only once every `chunk` tokens whether to go on: on a GPU each question waits
    for the device. Rows that have ended sit the rest of a chunk out.
    """

    def step(state: Decoding, _: Any) -> tuple[Decoding, None]:
        position = state.prompt_lengths + state.count - 1
        logits, cache = forward(params, state.last[:, None], position[:, None], state.cache)
        token = sample(logits[:, 0], request, position + 1)
        return _record(dataclasses.replace(state, cache=cache), token, request, until), None

    return jax.lax.while_loop(
        lambda state: jnp.any(_running(state, request, until)),
        lambda state: jax.lax.scan(step, state, length=chunk)[0],
        decoding,
    )


@functools.partial(jax.jit, static_argnames=("max_new_tokens", "slots", "chunk"))
def decode(
    params: Params,
    prompts: Int[Array, "batch time"],
    lengths: Int[Array, " batch"],
    request: Request,
    *,
    max_new_tokens: int,
    slots: int,
    chunk: int,
) -> Decoding:
    """Prompts to finished rows, in one program: prefill, then the loop."""
    start = prefill(params, prompts, lengths, request, max_new_tokens=max_new_tokens, slots=slots)
    return advance(params, start, request, jnp.array(max_new_tokens), chunk=chunk)


def _running(state: Decoding, request: Request, until: Int[Array, ""]) -> Bool[Array, " batch"]:
    return ~state.stopped & (state.count < jnp.minimum(request.budget, until))


def _record(
    state: Decoding, token: Int[Array, " batch"], request: Request, until: Int[Array, ""]
) -> Decoding:
    """Adds a token to each running row, or ends the row if the token is a stop."""
    running = _running(state, request, until)
    stops = running & jnp.isin(token, request.stop_ids)
    keeps = running & ~stops
    rows = jnp.arange(token.shape[0])
    # A row that keeps nothing writes beyond the end, which drops it.
    column = jnp.where(keeps, state.count, state.tokens.shape[1])
    return dataclasses.replace(
        state,
        last=jnp.where(keeps, token, state.last),
        tokens=state.tokens.at[rows, column].set(token, mode="drop"),
        count=state.count + keeps,
        stopped=state.stopped | stops,
    )
