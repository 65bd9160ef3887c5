"""The masks of top-k and top-p without sorting the vocabulary.

The smallest value that is kept is found by bisection over the bits of a float, which order as the
bits of an integer do.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, UInt32


def leads(
    values: Float[Array, "batch vocab"],
    weights: Float[Array, "batch vocab"],
    limit: Float[Array, " batch"],
    *,
    bits: int,
) -> Bool[Array, "batch vocab"]:
    """A mask of the entries whose preceding weights sum to at most `limit`.

    Entries are ordered by descending value, equal ones by index. Values [0.5, 0.2, 0.3], as
    weights too, and a limit of 0.5: the order is 0, 2, 1, the sums before are 0, 0.5 and 0.8, so
    entries 0 and 2 are kept. A pass over the data decides `bits` bits of the last value, by
    `2**bits - 1` sums; `bits` is 1, 2 or 4.
    """
    keys = _ordered(values)
    index = jnp.arange(keys.shape[-1], dtype=jnp.uint32)
    width = max(
        20, -(-keys.shape[-1].bit_length() // bits) * bits
    )  # bits of an index, in whole passes

    def fits(before: Bool[Array, "batch asked vocab"]) -> Bool[Array, "batch asked"]:
        return jnp.sum(jnp.where(before, weights[:, None], 0), axis=-1) <= limit[:, None]

    last = _first(lambda key: fits(keys[:, None] > key[:, :, None]), limit.shape[0], 32, bits)
    above, ties = keys > last[:, None], keys == last[:, None]

    def goes(i: UInt32[Array, "batch asked"]) -> Bool[Array, "batch asked"]:
        return ~fits(above[:, None] | (ties[:, None] & (index < i[:, :, None])))

    def cut() -> UInt32[Array, " batch"]:
        return _first(goes, limit.shape[0], width, bits)

    if bits == 1:  # on a CPU, where a branch is free: equal values are rare
        alone = jnp.all(jnp.sum(ties, axis=-1) <= 1)
        end = jax.lax.cond(alone, lambda: jnp.full(limit.shape, keys.shape[-1], jnp.uint32), cut)
    else:
        end = cut()
    return above | (ties & (index < end[:, None]))


def _first(
    holds: Callable[[UInt32[Array, "batch asked"]], Bool[Array, "batch asked"]],
    batch: int,
    width: int,
    bits: int,
) -> UInt32[Array, " batch"]:
    """The smallest integer n of `width` bits with `holds(n)`; the largest, if there is none.

    `holds` is false below some number and true from there on. A search that decides `bits` bits at
    a time: with 2 bits it asks at three places, which tell in which quarter n is.
    """
    parts = jnp.arange(1, 2**bits, dtype=jnp.uint32)

    def narrow(i: Array, start: Array) -> Array:
        shift = jnp.asarray(width - bits * (i + 1), jnp.uint32)
        ends = start[:, None] + (parts << shift) - 1
        return start + (jnp.sum(~holds(ends), axis=-1).astype(jnp.uint32) << shift)

    return jax.lax.fori_loop(0, width // bits, narrow, jnp.zeros(batch, jnp.uint32))


def _ordered(values: Float[Array, "batch vocab"]) -> UInt32[Array, "batch vocab"]:
    """Integers that order as the floats do: a negative float's bits run backwards."""
    values = jnp.where(values == 0, 0, values.astype(jnp.float32))  # no negative zero
    bits = jax.lax.bitcast_convert_type(values, jnp.uint32)
    sign = jnp.uint32(1 << 31)
    return jnp.where(bits & sign, ~bits, bits | sign)
