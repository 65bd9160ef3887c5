"""Grouped-query attention (arXiv:2305.13245) over a past and a step's own tokens.

The reference of `kernels.attention`, which the model calls.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int

from llama_jax.ops.linear import product_precision

Queries = Float[Array, "batch time heads head_dim"]
"""The queries of some tokens, rotated."""
NewKeys = Float[Array, "batch time kv_heads head_dim"]
"""The keys of some tokens, rotated, or their values: what a cache is to remember."""
Slots = Float[Array, "batch kv_heads slots head_dim"]
"""Keys or values by position: that of position p is in slot p."""
Lengths = Int[Array, " batch"]


def attention(
    q: Queries, k: NewKeys, v: NewKeys, past: tuple[Slots, Slots] | None, lengths: Lengths
) -> Queries:
    """Softmax attention of a step's queries over the past and over the step's own tokens.

    Row b sees the first `lengths[b]` slots of `past`, and its query i the step's first i + 1 keys.
    Query head h reads key-value head `h // (heads // kv_heads)`. With heads=8, kv_heads=2, a past
    of 16 slots and a step of 3 tokens: q [b, 3, 8, d], k [b, 3, 2, d], past [b, 2, 16, d].
    """
    weights = attention_weights(q, k, None if past is None else past[0], lengths)
    values = v.swapaxes(1, 2)
    if past is not None:
        values = jnp.concatenate([past[1], values.astype(past[1].dtype)], axis=2)
    grouped = weights.reshape(*values.shape[:2], -1, *weights.shape[2:])
    out = _product("bkgts,bksd->btkgd", grouped.astype(values.dtype), values)
    return out.reshape(q.shape).astype(q.dtype)


def attention_weights(
    q: Queries, k: NewKeys, past_k: Slots | None, lengths: Lengths
) -> Float32[Array, "batch heads time keys"]:
    """How much each query attends to each key: the past's slots first, then the step's own.

    A row sums to 1. Scores and softmax are float32.
    """
    batch, time, heads, head_dim = q.shape
    keys = k.swapaxes(1, 2)
    visible = jnp.broadcast_to(jnp.tri(time, dtype=bool), (batch, time, time))
    if past_k is not None:
        keys = jnp.concatenate([past_k, keys.astype(past_k.dtype)], axis=2)
        slots = past_k.shape[2]
        seen = jnp.arange(slots) < lengths[:, None]
        seen = jnp.broadcast_to(seen[:, None], (batch, time, slots))
        visible = jnp.concatenate([seen, visible], axis=2)
    grouped = q.reshape(batch, time, k.shape[2], -1, head_dim).astype(keys.dtype)
    scores = _product("btkgd,bksd->bkgts", grouped, keys) * head_dim**-0.5
    scores = jnp.where(visible[:, None, None], scores, -jnp.inf)
    return jax.nn.softmax(scores, axis=-1).reshape(batch, heads, time, -1)


def _product(axes: str, x: Array, y: Array) -> Array:
    """An einsum in float32."""
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    return jnp.einsum(axes, x, y, precision=product_precision(x.dtype))
