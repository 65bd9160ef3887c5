"""From logits to a token: the order in which a row's settings act."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from llama_jax.kernels import argmax, max_and_argmax, top_k, top_k_keeps, top_p_keeps
from llama_jax.ops.sampling import LARGEST, allowed_only, min_p_keeps, penalized, with_noise
from llama_jax.pytrees import register_dataclass


@register_dataclass
@dataclasses.dataclass(frozen=True)
class BatchSettings:
    """`SamplingSettings` of a batch as traced arrays."""

    numbers: dict[str, Array]
    """Each setting that is a number, [batch], by its name in `SamplingSettings`."""
    bias: Float[Array, "batch vocab"]
    """Added to the logits; minus infinity where a token is forbidden."""
    stop_id_mask: Bool[Array, "batch vocab"]
    """Tokens that end a row and are not part of it."""
    min_new_tokens: Int[Array, " batch"]
    max_new_tokens: Int[Array, " batch"]
    logprobs: Bool[Array, ""]
    """Whether any row wants log-probabilities."""
    allowed: UInt32[Array, "batch words"] | None = None
    """`Constraint.mask` of each row, for the next token only. None where no row has a constraint:
    that is another program."""

    def __getitem__(self, name: str) -> Array:
        """A setting that is a number, [batch]."""
        return self.numbers[name]


@register_dataclass
@dataclasses.dataclass(frozen=True)
class History:
    """The tokens before the next one, as penalties and draws need them."""

    prompt_lengths: Int[Array, " batch"]
    in_prompt: Bool[Array, "batch vocab"]
    counts: Int[Array, "batch vocab"]
    """How often each token is among the new ones."""
    count: Int[Array, " batch"]
    """How many new tokens there are."""


Branch = Callable[..., Any]
"""A function called as `jax.lax.cond` is. On a GPU `cond` itself waits for the host; `both` and
`second` do not."""


NO_TOKEN = -1
"""What is drawn from logits that are NaN or infinite."""


def both(wanted: Array, then: Callable[..., Any], otherwise: Callable[..., Any], *x: Any) -> Any:
    """Computes both branches and selects one."""
    return jax.tree.map(lambda a, b: jnp.where(wanted, a, b), then(*x), otherwise(*x))


def second(wanted: Array, then: Callable[..., Any], otherwise: Callable[..., Any], *x: Any) -> Any:
    """Computes the second branch alone."""
    return otherwise(*x)


def is_greedy(settings: BatchSettings) -> Bool[Array, ""]:
    """Whether all rows are greedy, without penalties and log-probabilities."""
    return ~(jnp.any((settings["temperature"] > 0) | _is_penalized(settings)) | settings.logprobs)


def sample(
    logits: Float[Array, "batch vocab"],
    settings: BatchSettings,
    history: History,
    *,
    branch: Branch = jax.lax.cond,
) -> Int[Array, " batch"]:
    """The next token of each row, in the order that `SamplingSettings` states.

    It is NO_TOKEN where a logit of the row is NaN or infinite.
    """
    penalize = functools.partial(_penalized, settings=settings, history=history)
    logits = branch(jnp.any(_is_penalized(settings)), penalize, _unchanged, logits)
    is_number = logits < jnp.inf  # false of NaN, true of minus infinity
    logits = jnp.minimum(logits + settings.bias, LARGEST)
    early = (history.count < settings.min_new_tokens)[:, None]
    logits = jnp.where(settings.stop_id_mask & early, -jnp.inf, logits)
    if settings.allowed is not None:
        logits = allowed_only(logits, settings.allowed)
    # NaN becomes infinity, because XLA's maximum on a CPU can drop a NaN.
    largest, greedy = max_and_argmax(jnp.where(is_number, logits, jnp.inf))
    temperature = settings["temperature"]

    def drawn(_: None) -> Int[Array, " batch"]:
        # Below the peak first: a small temperature would make infinities of large logits.
        below = logits - largest[:, None]
        warm = below / jnp.where(temperature > 0, temperature, 1)[:, None]
        warm = jnp.where(below > -jnp.inf, warm, -jnp.inf)  # not 0 / 0 where 1 / temperature is 0
        for wanted, keeps in (
            (settings["top_k"] > 0, lambda x: top_k_keeps(x, settings["top_k"])),
            (settings["top_p"] < 1, lambda x: top_p_keeps(jax.nn.softmax(x), settings["top_p"])),
            (settings["min_p"] > 0, lambda x: min_p_keeps(x, settings["min_p"])),
        ):
            warm = branch(jnp.any(wanted), functools.partial(_only, keeps), _unchanged, warm)
        position = history.prompt_lengths + history.count
        tokens = argmax(with_noise(warm, settings["seed"], position))
        return jnp.where(temperature > 0, tokens, greedy)

    tokens = branch(jnp.any(temperature > 0), drawn, lambda _: greedy, None)
    return jnp.where(largest < jnp.inf, tokens, NO_TOKEN)


def logprobs_of(
    logits: Float[Array, "*batch vocab"], token: Int[Array, "*batch"], k: int
) -> tuple[Float[Array, "*batch"], Int[Array, "*batch k"], Float[Array, "*batch k"]]:
    """The log-softmax of raw logits at `token`, and the `k` likeliest ids with theirs."""
    logprobs = jax.nn.log_softmax(logits, axis=-1)
    top_logprobs, top_ids = top_k(logprobs, k)
    chosen = jnp.take_along_axis(logprobs, token[..., None], axis=-1)[..., 0]
    return chosen, top_ids, top_logprobs


def _is_penalized(settings: BatchSettings) -> Bool[Array, " batch"]:
    none = {"repetition_penalty": 1, "presence_penalty": 0, "frequency_penalty": 0}
    return functools.reduce(jnp.logical_or, [settings[name] != x for name, x in none.items()])


def _penalized(logits: Array, settings: BatchSettings, history: History) -> Array:
    return penalized(
        logits,
        history.in_prompt,
        history.counts,
        settings["repetition_penalty"],
        settings["presence_penalty"],
        settings["frequency_penalty"],
    )


def _only(keeps: Callable[[Array], Array], logits: Array) -> Array:
    return jnp.where(keeps(logits), logits, -jnp.inf)


def _unchanged(x: Array) -> Array:
    return x
