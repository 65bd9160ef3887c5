"""The rules by which a token is drawn from logits.

Here top-k and top-p sort the vocabulary, which says best what they keep; `kernels` sorts nothing.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

LARGEST = float(jnp.finfo(jnp.float32).max)
"""The largest logit: a penalty that would make it infinite stops there."""


def penalized(
    logits: Float[Array, "batch vocab"],
    in_prompt: Bool[Array, "batch vocab"],
    counts: Int[Array, "batch vocab"],
    repetition: Float[Array, " batch"],
    presence: Float[Array, " batch"],
    frequency: Float[Array, " batch"],
) -> Float[Array, "batch vocab"]:
    """Logits after the penalties for tokens that were used before.

    `counts` is how often each token is among the new ones. `repetition` divides a positive logit
    and multiplies a negative one, of any token of the prompt or the new text (arXiv:1909.05858).
    The logit of a new token falls by `presence`, and by `frequency` times its count. A finite logit
    stays finite.
    """
    used = counts > 0
    factor = repetition[:, None]
    repeated = jnp.where(logits > 0, logits / factor, logits * factor)
    lower = jnp.where(in_prompt | used, repeated, logits)
    lower = lower - presence[:, None] * used - frequency[:, None] * counts
    return jnp.where(jnp.isfinite(logits), jnp.clip(lower, -LARGEST, LARGEST), lower)


def allowed_only(
    logits: Float[Array, "batch vocab"], words: UInt32[Array, "batch words"]
) -> Float[Array, "batch vocab"]:
    """The logits of allowed tokens, and minus infinity elsewhere.

    Token i is allowed where bit i % 32 of word i // 32 is 1.
    """
    bits = (words[:, :, None] >> jnp.arange(32, dtype=jnp.uint32)) & 1
    allowed = bits.reshape(len(words), -1)[:, : logits.shape[1]]
    return jnp.where(allowed == 1, logits, -jnp.inf)


def top_k_keeps(
    logits: Float[Array, "batch vocab"], top_k: Int[Array, " batch"]
) -> Bool[Array, "batch vocab"]:
    """The `top_k` likeliest tokens, or all where it is 0; of equals the lower id comes first."""
    return (_rank(logits) < top_k[:, None]) | (top_k == 0)[:, None]


def top_p_keeps(
    probs: Float[Array, "batch vocab"], top_p: Float[Array, " batch"]
) -> Bool[Array, "batch vocab"]:
    """Which tokens survive top-p, by Meta's rule.

    A token is dropped when those before it, in descending order of probability, sum to more than
    `top_p`. So the token that crosses it stays, and the first always stays. Of equals the lower id
    comes first. Probabilities 0.5, 0.25, 0.25 with `top_p` 0.5: the first two stay.
    """
    order = jnp.argsort(-probs, axis=-1, stable=True)
    in_order = jnp.take_along_axis(probs, order, axis=-1)
    before = jnp.pad(jnp.cumsum(in_order, axis=-1)[:, :-1], ((0, 0), (1, 0)))
    before = jnp.take_along_axis(before, _rank(probs), axis=-1)
    return (before <= top_p[:, None]) | (top_p >= 1)[:, None]


def min_p_keeps(
    logits: Float[Array, "batch vocab"], min_p: Float[Array, " batch"]
) -> Bool[Array, "batch vocab"]:
    """The tokens at least `min_p` times as likely as the likeliest (arXiv:2407.01082)."""
    best = jnp.max(logits, axis=-1, keepdims=True)
    return logits >= best + jnp.log(min_p)[:, None]


def with_noise(
    logits: Float[Array, "batch vocab"],
    seeds: UInt32[Array, " batch"],
    positions: Int[Array, " batch"],
) -> Float[Array, "batch vocab"]:
    """Logits plus Gumbel noise, whose argmax is a draw of the logits' softmax.

    The noise is a function of a row's seed and position alone, and not of the generator that a
    process has JAX take.
    """

    def noise(seed: Array, position: Array) -> Array:
        data = jnp.stack([jnp.zeros_like(seed), seed])  # as `jax.random.key` makes it of a seed
        key = jax.random.wrap_key_data(data, impl="threefry2x32")
        return jax.random.gumbel(jax.random.fold_in(key, position), logits.shape[1:], logits.dtype)

    with jax.threefry_partitionable(True):
        return logits + jax.vmap(noise)(seeds, positions)


def _rank(values: Float[Array, "batch vocab"]) -> Int[Array, "batch vocab"]:
    """Each entry's place in descending order of value, from 0; of equals the lower index first."""
    order = jnp.argsort(-values, axis=-1, stable=True)
    return jnp.argsort(order, axis=-1)
