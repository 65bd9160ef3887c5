"""What happens to logits before a token is drawn from them. Nothing here sorts a vocabulary."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

LARGEST = float(jnp.finfo(jnp.float32).max)
"""Where a logit ends that would otherwise become infinite."""


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
    `frequency` as often as the token was used. What was finite stays so.
    """
    used = counts > 0
    factor = repetition[:, None]
    repeated = jnp.where(logits > 0, logits / factor, logits * factor)
    lower = jnp.where(in_prompt | used, repeated, logits)
    lower = lower - presence[:, None] * used - frequency[:, None] * counts
    return jnp.where(jnp.isfinite(logits), jnp.clip(lower, -LARGEST, LARGEST), lower)


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


def likeliest(logits: Float[Array, "batch vocab"]) -> Int[Array, " batch"]:
    """The id of each row's largest logit, of equals the first."""
    by_argmax = lambda x: jnp.argmax(x, axis=-1).astype(jnp.int32)  # noqa: E731
    return jax.lax.platform_dependent(logits, cpu=_first_largest, default=by_argmax)


def draw(
    logits: Float[Array, "batch vocab"],
    seeds: UInt32[Array, " batch"],
    positions: Int[Array, " batch"],
) -> Int[Array, " batch"]:
    """One token a row, as a function of the row's logits, seed and position alone.

    The likeliest of logits with Gumbel noise (as `jax.random.categorical`): a draw of the softmax.
    """

    def noise(seed: Array, position: Array) -> Array:
        key = jax.random.fold_in(jax.random.key(seed), position)
        return jax.random.gumbel(key, logits.shape[1:], logits.dtype)

    return likeliest(logits + jax.vmap(noise)(seeds, positions))


def top_k(
    values: Float[Array, "*batch vocab"], k: int
) -> tuple[Float[Array, "*batch k"], Int[Array, "*batch k"]]:
    """The `k` largest of each row and their ids, as `jax.lax.top_k`: of equals the lower id first.

    Only the `k` blocks with the largest maxima can hold any of them, so that two short sorts serve
    for one of the whole vocabulary.
    """
    *batch, vocab = values.shape
    width = max(k, math.isqrt(vocab))
    short = -vocab % width
    blocks = jnp.pad(values.reshape(-1, vocab), ((0, 0), (0, short)), constant_values=-jnp.inf)
    blocks = blocks.reshape(blocks.shape[0], -1, width)
    _, chosen = jax.lax.top_k(jnp.max(blocks, axis=-1), min(k, blocks.shape[1]))
    chosen = jnp.sort(chosen, axis=-1)  # in the order of ids, which decides between equals
    candidates = jnp.take_along_axis(blocks, chosen[:, :, None], axis=1)
    largest, places = jax.lax.top_k(candidates.reshape(blocks.shape[0], -1), k)
    ids = jnp.take_along_axis(chosen, places // width, axis=1) * width + places % width
    return largest.reshape(*batch, k), ids.reshape(*batch, k)


def _first_largest(logits: Array) -> Array:
    """As `jnp.argmax`, which a CPU does number by number; two reductions use whole registers."""
    below = logits < jnp.max(logits, axis=-1, keepdims=True)
    ids = jnp.arange(logits.shape[-1], dtype=jnp.int32)
    return jnp.min(jnp.where(below, logits.shape[-1], ids), axis=-1)


@jax.jit  # traced and lowered once, for top-k and for top-p
def _leads(
    values: Float[Array, "batch vocab"],
    weights: Float[Array, "batch vocab"],
    limit: Float[Array, " batch"],
) -> Bool[Array, "batch vocab"]:
    """Which entries have at most `limit` of weight before them, in descending order of value.

    Of equal values the lower index comes first. The last value that stays is searched among all
    floats, as the bits of a float order as an integer's do, and then the last of its equals. A CPU
    halves; a GPU, to which a pass costs more than its sums, asks for 15 sums in each.
    """
    return jax.lax.platform_dependent(
        values,
        weights,
        limit,
        cpu=functools.partial(_leads_by, bits=1),
        default=functools.partial(_leads_by, bits=4),
    )


def _leads_by(values: Array, weights: Array, limit: Array, *, bits: int) -> Array:
    keys = _ordered(values)
    index = jnp.arange(keys.shape[-1], dtype=jnp.uint32)
    width = max(20, -(-keys.shape[-1].bit_length() // bits) * bits)  # of an index, in whole steps

    def fits(leaders: Bool[Array, "batch asked vocab"]) -> Bool[Array, "batch asked"]:
        return jnp.sum(jnp.where(leaders, weights[:, None], 0), axis=-1) <= limit[:, None]

    last = _first(lambda key: fits(keys[:, None] > key[:, :, None]), limit.shape[0], 32, bits)
    leads, ties = keys > last[:, None], keys == last[:, None]

    def goes(i: UInt32[Array, "batch asked"]) -> Bool[Array, "batch asked"]:
        return ~fits(leads[:, None] | (ties[:, None] & (index < i[:, :, None])))

    def cut() -> UInt32[Array, " batch"]:
        return _first(goes, limit.shape[0], width, bits)

    if bits == 1:  # a CPU's branches are free, and equals rare
        alone = jnp.all(jnp.sum(ties, axis=-1) <= 1)
        end = jax.lax.cond(alone, lambda: jnp.full(limit.shape, keys.shape[-1], jnp.uint32), cut)
    else:
        end = cut()
    return leads | (ties & (index < end[:, None]))


def _first(
    holds: Callable[[UInt32[Array, "batch asked"]], Bool[Array, "batch asked"]],
    batch: int,
    width: int,
    bits: int,
) -> UInt32[Array, " batch"]:
    """The first number of `width` bits at which `holds`, false before and true after, is true.

    Asked for the ends of all parts but the last, `bits` bits at a time; the last number, where it
    never is.
    """
    parts = jnp.arange(1, 2**bits, dtype=jnp.uint32)

    def narrow(i: Array, start: Array) -> Array:
        shift = (width - bits * (i + 1)).astype(jnp.uint32)
        ends = start[:, None] + (parts << shift) - 1
        return start + (jnp.sum(~holds(ends), axis=-1).astype(jnp.uint32) << shift)

    return jax.lax.fori_loop(0, width // bits, narrow, jnp.zeros(batch, jnp.uint32))


def _ordered(values: Float[Array, "batch vocab"]) -> UInt32[Array, "batch vocab"]:
    """Integers that order as the floats do: a negative float's bits run backwards."""
    values = jnp.where(values == 0, 0, values.astype(jnp.float32))  # no negative zero
    bits = jax.lax.bitcast_convert_type(values, jnp.uint32)
    sign = jnp.uint32(1 << 31)
    return jnp.where(bits & sign, ~bits, bits | sign)
