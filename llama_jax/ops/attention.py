"""Grouped-query attention (arXiv:2305.13245) over keys and values that lie in several places."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from llama_jax.ops.linear import product_precision


class Span(NamedTuple):
    """Some keys and values, and which query may look at which of them."""

    k: Float[Array, "batch kv_heads span head_dim"]
    v: Float[Array, "batch kv_heads span head_dim"]
    visible: Bool[Array, "batch time span"]


def attention(
    q: Float[Array, "batch time heads head_dim"], spans: Sequence[Span]
) -> Float[Array, "batch time heads head_dim"]:
    """Softmax attention of each query over all its visible keys, in whatever span they lie.

    Query head h reads key-value head `h // (heads // kv_heads)`. Every query must see a key.
    Scores and softmax are float32; the weights meet the values in the values' dtype.
    """
    batch, time, heads, head_dim = q.shape
    kv_heads = spans[0].k.shape[1]
    grouped = q.reshape(batch, time, kv_heads, heads // kv_heads, head_dim)
    # A group's queries become rows of one product with their shared keys: no key is repeated.
    rows = grouped.transpose(0, 2, 3, 1, 4).reshape(batch, kv_heads, -1, head_dim)

    scores = [_scores(rows, span, time) for span in spans]
    peak = jnp.max(jnp.stack([jnp.max(s, axis=-1) for s in scores]), axis=0)[..., None]
    weights = [jnp.exp(s - peak) for s in scores]
    total = sum((jnp.sum(w, axis=-1, keepdims=True) for w in weights), start=jnp.float32(0))
    parts = [_weighted(w / total, span.v) for w, span in zip(weights, spans, strict=True)]
    out = functools.reduce(jnp.add, parts)

    out = out.astype(q.dtype).reshape(batch, kv_heads, -1, time, head_dim)
    return out.transpose(0, 3, 1, 2, 4).reshape(q.shape)


def _scores(
    rows: Float[Array, "batch kv_heads rows head_dim"], span: Span, time: int
) -> Float[Array, "batch kv_heads rows span"]:
    precision = product_precision(rows.dtype)
    scores = jnp.einsum(
        "bkrd,bksd->bkrs", rows, span.k, precision=precision, preferred_element_type=jnp.float32
    )
    scores = (scores * rows.shape[-1] ** -0.5).reshape(*scores.shape[:2], -1, time, scores.shape[3])
    masked = jnp.where(span.visible[:, None, None], scores, -jnp.inf)
    return masked.reshape(*scores.shape[:2], -1, scores.shape[4])


def _weighted(
    weights: Float[Array, "batch kv_heads rows span"],
    v: Float[Array, "batch kv_heads span head_dim"],
) -> Float[Array, "batch kv_heads rows head_dim"]:
    precision = product_precision(v.dtype)
    return jnp.einsum(
        "bkrs,bksd->bkrd",
        weights.astype(v.dtype),
        v,
        precision=precision,
        preferred_element_type=jnp.float32,
    )
