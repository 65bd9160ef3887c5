"""Causal attention of rows without a past, with a gradient of bounded memory.

The forward pass keeps the output and each query's logsumexp. The backward pass takes one pair of a
query block and a key block at a time, computes the pair's weights again and adds its share of the
gradients (arXiv:2205.14135, algorithm 4). So no array of shape [time, time] exists.

    q [2, 2048, 32, 64], k and v [2, 2048, 8, 64]: 4 blocks of 512 tokens, so 10 pairs at or below
    the diagonal, each with scores of shape [2, 8, 512, 4, 512]
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from llama_jax.jax_settings import AS_TRACED, as_written
from llama_jax.kernels.blockwise import OwnKeys, over_spans
from llama_jax.ops.attention import NewKeys, Queries
from llama_jax.ops.linear import product_precision

BLOCK, SMALL_BLOCK = 512, 128
"""Tokens of a block, and of one where a row has at most 512. Smaller blocks skip more of the pairs
above the diagonal; larger ones multiply faster."""
UNROLLED = 10
"""Up to so many pairs are written out one after the other; more become a loop."""

Grouped = Float[Array, "batch kv_heads time group head_dim"]
Keys = Float[Array, "batch kv_heads time head_dim"]
First = Int[Array, "batch time"] | None
TIME = 2  # the axis of `Grouped` and `Keys`


@jax.custom_vjp
@as_written(AS_TRACED)
def causal_attention(q: Queries, k: NewKeys, v: NewKeys, first: First = None) -> Queries:
    """Attention of query t to the keys from index `first[t]`, or from 0, up to t.

    Forward-mode derivatives (`jax.jvp`) are not defined; `ops.attention.attention` has them.
    """
    if first is None:
        return over_spans(q, [OwnKeys(k.swapaxes(1, 2), v.swapaxes(1, 2))])
    return _attend(q, k, v, first)[0]


@as_written(AS_TRACED)
def _forward(q: Queries, k: NewKeys, v: NewKeys, first: First) -> tuple[Queries, Any]:
    out, logsumexp = _attend(q, k, v, first)
    return out, (q, k, v, first, out, logsumexp)


@jax.jit  # traced and lowered once, not once a layer
def _attend(q: Queries, k: NewKeys, v: NewKeys, first: First) -> tuple[Queries, Array]:
    """The output, and the logsumexp of each query's scores: [batch, kv_heads, time, group]."""
    size = _block(q)
    queries, keys, values = _grouped(q, k, size), _by_head(k, size), _by_head(v, size)
    one = queries.shape[:-1]
    # Finite, because infinity minus infinity is NaN.
    lowest = jnp.full(one, jnp.finfo(jnp.float32).min, jnp.float32)

    def add(sums: Any, i: Any, j: Any) -> Any:
        scores = _scores(_cut(queries, i, size), _cut(keys, j, size), first, i, j)
        peak, total, out = (_cut(x, i, size) for x in sums)
        higher = jnp.maximum(peak, jnp.max(scores, axis=-1))
        weights, scale = jnp.exp(scores - higher[..., None]), jnp.exp(peak - higher)
        total = total * scale + jnp.sum(weights, axis=-1)
        more = _product("bkqgs,bksd->bkqgd", weights, _cut(values, j, size))
        new = (higher, total, out * scale[..., None] + more)
        return tuple(_put(x, part, i, size) for x, part in zip(sums, new, strict=True))

    start = (lowest, jnp.zeros(one, jnp.float32), jnp.zeros(queries.shape, jnp.float32))
    peak, total, out = _over_pairs(add, start, queries.shape[TIME] // size)
    return _ungrouped(out / total[..., None], q), peak + jnp.log(total)


@as_written(AS_TRACED)  # JAX traces it after `forward` has returned
@jax.jit
def _backward(kept: Any, d_out: Queries) -> tuple[Queries, NewKeys, NewKeys, None]:
    q, k, v, first, out, logsumexp = kept
    size = _block(q)
    queries, keys, values = _grouped(q, k, size), _by_head(k, size), _by_head(v, size)
    d_rows = _grouped(d_out.astype(q.dtype), k, size)
    # The gradient of a softmax subtracts from each weight's gradient their weighted mean.
    mean = jnp.sum(d_rows.astype(jnp.float32) * _grouped(out, k, size), axis=-1, keepdims=True)

    def add(sums: Any, i: Any, j: Any) -> Any:
        query, key, d_row = _cut(queries, i, size), _cut(keys, j, size), _cut(d_rows, i, size)
        scores = _scores(query, key, first, i, j)
        weights = jnp.exp(scores - _cut(logsumexp, i, size)[..., None])
        d_weights = _product("bkqgd,bksd->bkqgs", d_row, _cut(values, j, size))
        d_scores = weights * (d_weights - _cut(mean, i, size)) * q.shape[-1] ** -0.5
        parts = (
            (_product("bkqgs,bksd->bkqgd", d_scores, key), i, TIME),
            (_turned_product(query, d_scores), j, -1),
            (_turned_product(d_row, weights), j, -1),
        )
        return tuple(
            _put(total, _cut(total, at, size, axis) + part, at, size, axis)
            for total, (part, at, axis) in zip(sums, parts, strict=True)
        )

    turned = (*keys.shape[:2], keys.shape[3], keys.shape[TIME])
    start = tuple(jnp.zeros(shape, jnp.float32) for shape in (queries.shape, turned, turned))
    d_q, d_k, d_v = _over_pairs(add, start, queries.shape[TIME] // size)
    d_k, d_v = (jnp.moveaxis(d, -1, 1)[:, : k.shape[1]].astype(k.dtype) for d in (d_k, d_v))
    return _ungrouped(d_q, q), d_k, d_v, None


causal_attention.defvjp(_forward, _backward)


def pair_scores(heads: int, time: int) -> int:
    """Bytes of one pair's scores, of so many rows times query heads."""
    return 4 * heads * _block_of(time) ** 2


def kept_scores(heads: int, time: int) -> int:
    """Bytes of scores that XLA keeps for the gradient: of all pairs, unless they are a loop.

    It finds the product of the backward pass in the forward pass, where both are in one program.
    """
    blocks = -(-time // _block_of(time))
    pairs = blocks * (blocks + 1) // 2
    return pairs * pair_scores(heads, time) if pairs <= UNROLLED else 0


def _over_pairs(add: Callable[[Any, Any, Any], Any], sums: Any, blocks: int) -> Any:
    """`add(sums, i, j)` for every query block i and every key block j up to i."""
    pairs = [(i, j) for i in range(blocks) for j in range(i + 1)]
    if len(pairs) <= UNROLLED:
        return functools.reduce(lambda sums, pair: add(sums, *pair), pairs, sums)

    def step(sums: Any, pair: Array) -> tuple[Any, None]:
        return add(sums, pair[0], pair[1]), None

    return jax.lax.scan(step, sums, jnp.array(pairs, jnp.int32))[0]


def _scores(query: Grouped, key: Keys, first: First, i: Any, j: Any) -> Array:
    """Scores [batch, kv_heads, block, group, block] of a pair; -inf where a query does not look."""
    size = key.shape[TIME]
    queries, keys = i * size + jnp.arange(size), j * size + jnp.arange(size)
    seen = (keys <= queries[:, None])[None]
    if first is not None:
        whole = jnp.pad(first, ((0, 0), (0, -first.shape[1] % size)))
        seen &= keys >= jax.lax.dynamic_slice_in_dim(whole, i * size, size, axis=1)[:, :, None]
    scores = _product("bkqgd,bksd->bkqgs", query, key) * query.shape[-1] ** -0.5
    return jnp.where(seen[:, None, :, None], scores, -jnp.inf)


def _block(q: Queries) -> int:
    return _block_of(q.shape[1])


def _block_of(time: int) -> int:
    return BLOCK if time > BLOCK else min(time, SMALL_BLOCK)


def _by_head(x: NewKeys, size: int) -> Keys:
    """[batch, time, kv_heads, head_dim] with the heads first, and padding up to whole blocks."""
    more = ((0, 0), (0, -x.shape[1] % size)) + ((0, 0),) * (x.ndim - 2)
    return jnp.pad(x, more).swapaxes(1, 2)


def _grouped(x: Queries, k: NewKeys, size: int) -> Grouped:
    """The query heads that share a key head side by side, as rows of one product."""
    return _by_head(x.reshape(*x.shape[:2], k.shape[2], -1, x.shape[-1]), size)


def _ungrouped(x: Grouped, like: Queries) -> Queries:
    return x.swapaxes(1, 2)[:, : like.shape[1]].reshape(like.shape).astype(like.dtype)


def _cut(x: Array, block: Any, size: int, axis: int = TIME) -> Array:
    return jax.lax.dynamic_slice_in_dim(x, block * size, size, axis=axis)


def _put(x: Array, part: Array, block: Any, size: int, axis: int = TIME) -> Array:
    return jax.lax.dynamic_update_slice_in_dim(x, part, block * size, axis=axis)


def _product(axes: str, one: Array, other: Array) -> Array:
    """An einsum in the dtype of `other`, summed in float32."""
    precision = product_precision(other.dtype)
    return jnp.einsum(
        axes,
        one.astype(other.dtype),
        other,
        precision=precision,
        preferred_element_type=jnp.float32,
    )


def _turned_product(rows: Grouped, scores: Array) -> Array:
    """The sum over queries of scores times rows: [batch, kv_heads, head_dim, block of keys].

    In this order of operands XLA transposes the rows on a CPU, and not the larger scores.
    """
    sums = (((2, 3), (2, 3)), ((0, 1), (0, 1)))
    return jax.lax.dot_general(
        rows,
        scores.astype(rows.dtype),
        sums,
        precision=product_precision(rows.dtype),
        preferred_element_type=jnp.float32,
    )
