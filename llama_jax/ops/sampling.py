"""What happens to logits before a token is drawn from them. Nothing here sorts a vocabulary."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32


def penalized(
    logits: Float[Array, "batch vocab"],
    in_prompt: Bool[Array, "batch vocab"],
    counts: Int[Array, "batch vocab"],
    repetition: Float[Array, " batch"],
    presence: Float[Array, " batch"],
    frequency: Float[Array, " batch"],
) -> Float[Array, "batch vocab"]:
    """Logits less what their tokens' earlier use costs; `counts` is of the new tokens.

    `repetition` divides a positive logit and multiplies a negative one, of any token of the prompt
    or the new text (arXiv:1909.05858). `presence` is subtracted once from a new token's logit, and
    `frequency` as often as the token was used.
    """
    used = counts > 0
    factor = repetition[:, None]
    repeated = jnp.where(logits > 0, logits / factor, logits * factor)
    logits = jnp.where(in_prompt | used, repeated, logits)
    return logits - presence[:, None] * used - frequency[:, None] * counts


def top_k_keeps(
    logits: Float[Array, "batch vocab"], top_k: Int[Array, " batch"]
) -> Bool[Array, "batch vocab"]:
    """The `top_k` likeliest tokens, or all where it is 0; of equals the lower id comes first."""
    ones = jnp.ones_like(logits)
    return _leads(logits, ones, top_k.astype(logits.dtype) - 1) | (top_k == 0)[:, None]


def top_p_keeps(
    probs: Float[Array, "batch vocab"], top_p: Float[Array, " batch"]
) -> Bool[Array, "batch vocab"]:
    """Which tokens survive top-p, by Meta's rule.

    A token goes when those before it, in descending order of probability, sum to more than
    `top_p`. So the one that crosses it stays, the first always stays, and of equals the lower
    id comes first.
    """
    # With top_p = 1 nothing goes, though a rounded sum may exceed 1.
    return _leads(probs, probs, top_p) | (top_p >= 1)[:, None]


def min_p_keeps(
    logits: Float[Array, "batch vocab"], min_p: Float[Array, " batch"]
) -> Bool[Array, "batch vocab"]:
    """The tokens at least `min_p` times as likely as the likeliest (arXiv:2407.01082)."""
    best = jnp.max(logits, axis=-1, keepdims=True)
    return logits >= best + jnp.log(min_p)[:, None]


def draw(
    logits: Float[Array, "batch vocab"],
    seeds: UInt32[Array, " batch"],
    positions: Int[Array, " batch"],
) -> Int[Array, " batch"]:
    """One token a row, as a function of the row's logits, seed and position alone."""

    def one(logits: Array, seed: Array, position: Array) -> Array:
        key = jax.random.fold_in(jax.random.key(seed), position)
        return jax.random.categorical(key, logits).astype(jnp.int32)

    return jax.vmap(one)(logits, seeds, positions)


def _leads(
    values: Float[Array, "batch vocab"],
    weights: Float[Array, "batch vocab"],
    limit: Float[Array, " batch"],
) -> Bool[Array, "batch vocab"]:
    """Which entries have at most `limit` of weight before them, in descending order of value.

    Of equal values the lower index comes first. The last value that stays is found by bisection,
    and so is the last of its equals: the bits of a float order as an integer's do, so 32 sums find
    it among all floats. A sum, unlike a sorted or a running one, is cheap where the vocabulary is
    cut over devices.
    """
    keys, index = _ordered(values), jnp.arange(values.shape[-1])

    def fits(leaders: Bool[Array, "batch vocab"]) -> Bool[Array, " batch"]:
        return jnp.sum(jnp.where(leaders, weights, 0), axis=-1) <= limit

    info, batch = jnp.iinfo(jnp.int32), limit.shape
    every = jnp.full(batch, info.min), jnp.full(batch, info.max)
    _, last = _bisected(lambda key: fits(keys > key[:, None]), every, 32)
    leads, ties = keys > last[:, None], keys == last[:, None]

    def cut(_: None) -> Int[Array, " batch"]:
        none = jnp.full(batch, -1), jnp.full(batch, len(index))
        steps = len(index).bit_length() + 1
        before = lambda end: leads | (ties & (index < end[:, None]))  # noqa: E731
        return _bisected(lambda end: ~fits(before(end)), none, steps)[0]

    alone = jnp.all(jnp.sum(ties, axis=-1) <= 1)  # which it nearly always is
    end = jax.lax.cond(alone, lambda _: jnp.full(batch, len(index) - 1), cut, None)
    return leads | (ties & (index <= end[:, None]))


def _bisected(
    stays: Callable[[Int[Array, " batch"]], Bool[Array, " batch"]],
    bounds: tuple[Int[Array, " batch"], Int[Array, " batch"]],
    steps: int,
) -> tuple[Int[Array, " batch"], Int[Array, " batch"]]:
    """The neighbours low and high where `stays` turns true: false at `low`, true at `high`."""

    def halve(_: Array, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = (low & high) + ((low ^ high) >> 1)  # their mean, without overflow
        found = stays(middle)
        return jnp.where(found, low, middle), jnp.where(found, middle, high)

    return jax.lax.fori_loop(0, steps, halve, bounds)


def _ordered(values: Float[Array, "batch vocab"]) -> Int[Array, "batch vocab"]:
    """Integers that order as the floats do: a negative float's bits run backwards."""
    values = jnp.where(values == 0, 0, values.astype(jnp.float32))  # no negative zero
    bits = jax.lax.bitcast_convert_type(values, jnp.int32)
    return jnp.where(bits < 0, bits ^ jnp.iinfo(jnp.int32).max, bits)
