"""Stop strings, met where tokens are decided: the bytes of new tokens against texts to stop at."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Int16, UInt8

NOTHING = -1
"""In place of a byte: before a text's beginning, after a token's end, before a stop string's."""

Ending = Int16[Array, "batch width"]
"""The last bytes of each row's text, NOTHING before its beginning."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StopStrings:
    """What each row stops at, and what each token spells."""

    wanted: Bool[Array, "batch strings"]
    strings: Int16[Array, "batch strings width"]
    """In bytes, ending where the last axis ends."""
    inside: Bool[Array, "batch vocab"]
    """Tokens longer than `width` that spell one wholly, beyond their first `width` bytes."""
    at_start: Bool[Array, " batch"]
    """Whether the row's text begins a text, where some tokens are spelled without their space."""
    heads: UInt8[Array, "vocab width"]
    """A token's first bytes."""
    tails: UInt8[Array, "vocab width"]
    """A token's last bytes, ending where the axis ends."""
    sizes: Int[Array, " vocab"]
    """A token's bytes, all of them."""
    dropped: Int[Array, " vocab"]
    """How many of the first are dropped at a text's start."""
    still_at_start: Bool[Array, " vocab"]
    """Whether a text that has only this token has not begun yet."""


def push_tokens(
    stops: StopStrings,
    tokens: Int[Array, " batch"],
    ending: Ending,
    at_start: Bool[Array, " batch"],
) -> tuple[Bool[Array, " batch"], Ending, Bool[Array, " batch"]]:
    """Which rows meet a stop string with a token more, their new endings and starts.

    Bytes serve: UTF-8 begins no character inside another, so bytes match where text does.
    """
    width = ending.shape[1]
    place = jnp.arange(width)
    dropped = jnp.where(at_start, stops.dropped[tokens], 0)[:, None]
    size = stops.sizes[tokens][:, None] - dropped

    spelled = stops.heads[tokens[:, None], jnp.minimum(place + dropped, width - 1)]
    head = jnp.where(place < jnp.minimum(size, width - dropped), spelled, NOTHING)
    both = jnp.concatenate([ending, head.astype(jnp.int16)], axis=1)

    ends = both[:, 1 + place[:, None] + place]  # [batch, end, width]: the text up to each new byte
    same = (stops.strings[:, :, None] == NOTHING) | (stops.strings[:, :, None] == ends[:, None])
    met = jnp.all(same, axis=-1) & stops.wanted[:, :, None] & (place < size)[:, None]
    inside = stops.inside[jnp.arange(tokens.shape[0]), tokens] & ~at_start

    tail = jnp.where(place >= width - size, stops.tails[tokens], NOTHING).astype(jnp.int16)
    short = jnp.take_along_axis(both, jnp.minimum(size, width) + place, axis=1)
    ending = jnp.where(size >= width, tail, short)
    return jnp.any(met, axis=(1, 2)) | inside, ending, at_start & stops.still_at_start[tokens]
