"""From logits to a token: what a row asks for, and the order in which its settings act."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from llama_jax.generation.stops import StopStrings
from llama_jax.ops.sampling import (
    LARGEST,
    draw,
    likeliest,
    min_p_keeps,
    penalized,
    top_k_keeps,
    top_p_keeps,
)
from llama_jax.sharding.arrays import top_k


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
    stop_strings: StopStrings
    """Texts that end a row; the token that completes one is the row's last."""
    least: Int[Array, " batch"]
    """How many tokens a row has before it may stop."""
    budget: Int[Array, " batch"]
    """How many tokens a row may have at most."""
    logprobs: Bool[Array, ""]
    """Whether anybody wants log-probabilities."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Written:
    """What of a row's text its next token hangs on, but for the logits."""

    prompt_lengths: Int[Array, " batch"]
    in_prompt: Bool[Array, "batch vocab"]
    counts: Int[Array, "batch vocab"]
    """How often each token is among the new ones."""
    count: Int[Array, " batch"]
    """How many new tokens there are."""


Choice = Callable[..., Any]
"""How to take one of two branches, called as `jax.lax.cond` is. On a GPU that one makes the host
wait for the device: `always` and `never` do not."""


def always(wanted: Array, then: Callable[..., Any], otherwise: Callable[..., Any], *x: Any) -> Any:
    """Computes both branches, and picks one."""
    return jax.tree.map(lambda a, b: jnp.where(wanted, a, b), then(*x), otherwise(*x))


def never(wanted: Array, then: Callable[..., Any], otherwise: Callable[..., Any], *x: Any) -> Any:
    """The second branch, for when it is known that nobody wants the first."""
    return otherwise(*x)


def asks_for_more(request: Request) -> Bool[Array, ""]:
    """Whether any row wants more than its likeliest token until a stop id."""
    wishes = (
        request.temperature > 0,
        request.repetition != 1,
        request.presence != 0,
        request.frequency != 0,
        request.logprobs,
        request.stop_strings.wanted,
    )
    return functools.reduce(jnp.logical_or, map(jnp.any, wishes))


def sample(
    logits: Float[Array, "batch vocab"],
    request: Request,
    written: Written,
    *,
    choose: Choice = jax.lax.cond,
) -> Int[Array, " batch"]:
    """The next token of each row, in the order that `SamplingSettings` states."""
    penalty = (request.repetition != 1) | (request.presence != 0) | (request.frequency != 0)
    penalize = lambda x: _penalized(x, request, written)  # noqa: E731
    logits = choose(jnp.any(penalty), penalize, _same, logits)
    logits = jnp.minimum(logits + request.bias, LARGEST)
    early = (written.count < request.least)[:, None]
    logits = jnp.where(request.stops & early, -jnp.inf, logits)
    greedy = likeliest(logits)

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
            warm = choose(jnp.any(wanted), cut, _same, warm)
        tokens = draw(warm, request.seed, written.prompt_lengths + written.count)
        return jnp.where(request.temperature > 0, tokens, greedy)

    return choose(jnp.any(request.temperature > 0), drawn, lambda _: greedy, None)


def logprobs_of(
    logits: Float[Array, "*batch vocab"], token: Int[Array, "*batch"], k: int
) -> tuple[Float[Array, "*batch"], Int[Array, "*batch k"], Float[Array, "*batch k"]]:
    """The log-softmax of raw logits at `token`, and the `k` likeliest ids with theirs."""
    logprobs = jax.nn.log_softmax(logits, axis=-1)
    top_logprobs, top_ids = top_k(logprobs, k)
    chosen = jnp.take_along_axis(logprobs, token[..., None], axis=-1)[..., 0]
    return chosen, top_ids, top_logprobs


def _penalized(logits: Array, request: Request, written: Written) -> Array:
    penalties = request.repetition, request.presence, request.frequency
    return penalized(logits, written.in_prompt, written.counts, *penalties)


def _keep(keeps: Callable[[Array], Array], logits: Array) -> Array:
    return jnp.where(keeps(logits), logits, -jnp.inf)


def _same(x: Array) -> Array:
    return x
