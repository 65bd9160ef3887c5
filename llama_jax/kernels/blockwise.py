"""Attention block by block, for any platform: memory-efficient and exact.

For a block of keys it keeps the largest score m, sum(exp(s - m)) and sum(exp(s - m) * v). Two
blocks merge in either order (online softmax, arXiv:2112.05682). So memory holds the scores of one
block of queries and keys at a time, never an array [time, time].
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from llama_jax.ops.attention import Lengths, NewKeys, Queries
from llama_jax.ops.linear import product_precision

QUERY_BLOCK, KEY_BLOCK = 512, 1024
"""Queries and keys of a block. With no more pairs than one block has, there is one block."""
CAUSAL_BLOCK = 128
"""Queries taken at once where there is no past and all pairs fit one block. Each part skips the
keys after its last query: 512 tokens cost 5/8 of the products."""
LOWEST = float(jnp.finfo(jnp.float32).min)
"""The peak where there are no scores. It is finite, because infinity minus infinity is NaN."""
UNSEEN = int(jnp.iinfo(jnp.int32).max)
"""The position of padding: a key that no query sees."""


class Span(NamedTuple):
    """Keys and values with their positions. A query sees positions up to its `last`."""

    k: Float[Array, "batch kv_heads span head_dim"]
    v: Float[Array, "batch kv_heads span head_dim"]
    positions: Int[Array, "#batch span"]
    last: Int[Array, "batch _"]
    """One for each query, or one for all queries of a row."""
    k_scale: Float[Array, "batch kv_heads span"] | None = None
    """The factor of each key, where keys and values are int8."""
    v_scale: Float[Array, "batch kv_heads span"] | None = None


class OwnKeys(NamedTuple):
    """The keys and values of the step's own tokens: query i sees the first i + 1."""

    k: Float[Array, "batch kv_heads time head_dim"]
    v: Float[Array, "batch kv_heads time head_dim"]


class Partial(NamedTuple):
    """Attention of each row to some of the keys. `out / total` is their weighted mean."""

    peak: Float[Array, "batch kv_heads rows 1"]
    total: Float[Array, "batch kv_heads rows 1"]
    out: Float[Array, "batch kv_heads rows head_dim"]


def attention(
    q: Queries, k: NewKeys, v: NewKeys, past: tuple[Array, ...] | None, lengths: Lengths
) -> Queries:
    """`ops.attention.attention`, without a copy of the past and with bounded memory.

    `past` is keys and values, and of int8 the scale of each key and of each value too.
    """
    spans: list[Span | OwnKeys] = [OwnKeys(k.swapaxes(1, 2), v.swapaxes(1, 2))]
    if past is not None:
        keys, values, *scales = past
        slots = jnp.arange(keys.shape[2]).reshape(1, -1)
        spans.insert(0, Span(keys, values, slots, lengths[:, None] - 1, *scales))
    return over_spans(q, spans)


def over_spans(q: Queries, spans: Sequence[Span | OwnKeys]) -> Queries:
    """Softmax attention of each query over its visible keys in all spans.

    Query head h reads key-value head `h // (heads // kv_heads)`. Every query must see a key.
    Scores and softmax are float32; the weights meet the values in the values' dtype.
    """
    return _over_spans(q, tuple(spans))


@jax.jit  # traced and lowered once, not once a layer
def _over_spans(q: Array, spans: tuple[Span | OwnKeys, ...]) -> Array:
    time = q.shape[1]
    if time <= QUERY_BLOCK or all(_is_one_block(time, span) for span in spans):
        # With a past each part would read it again, so the queries stay together.
        step = CAUSAL_BLOCK if len(spans) == 1 and isinstance(spans[0], OwnKeys) else time
        cut = [q[:, i : i + step] for i in range(0, time, step)]
        parts = [_of_queries(part, _visible(spans, i * step, part)) for i, part in enumerate(cut)]
        return jnp.concatenate(parts, axis=1)
    spans = _visible(spans, 0, q)
    lasts = [jnp.broadcast_to(span.last, q.shape[:2]) for span in spans]

    @jax.checkpoint  # the backward pass computes the scores again
    def of_block(block: tuple[Array, list[Array]]) -> Array:
        q, lasts = block
        return _of_queries(q, tuple(s._replace(last=x) for s, x in zip(spans, lasts, strict=True)))

    def in_blocks(x: Array) -> Array:
        # [batch, time, ...] -> [blocks, batch, 512, ...]. Copies of the last query fill the last
        # block, so that every query sees a key.
        whole = jnp.pad(x, _padding(QUERY_BLOCK, x, axis=1), mode="edge")
        return whole.reshape(x.shape[0], -1, QUERY_BLOCK, *x.shape[2:]).swapaxes(0, 1)

    out = jax.lax.map(of_block, jax.tree.map(in_blocks, (q, lasts)))
    return out.swapaxes(0, 1).reshape(q.shape[0], -1, *q.shape[2:])[:, :time]


def _visible(spans: tuple[Span | OwnKeys, ...], first: int, q: Array) -> tuple[Span, ...]:
    """The spans as the step's queries `first` to `first + len(q)` see them."""
    end = first + q.shape[1]

    def one(span: Span | OwnKeys) -> Span:
        if isinstance(span, Span):
            return span
        k, v = span.k[:, :, :end], span.v[:, :, :end]
        return Span(k, v, jnp.arange(end).reshape(1, -1), jnp.arange(first, end).reshape(1, -1))

    return tuple(map(one, spans))


def _of_queries(q: Array, spans: tuple[Span, ...]) -> Array:
    rows = query_rows(q, spans[0].k.shape[1])
    partials = [over_span(rows, span, q.shape[1]) for span in spans]
    return output(functools.reduce(merged, partials), q)


def query_rows(q: Queries, kv_heads: int) -> Float[Array, "batch kv_heads rows head_dim"]:
    """The queries that share a key head as rows of one product, so no key is repeated.

    [batch, time, heads, head_dim] -> [batch, kv_heads, group * time, head_dim].
    """
    batch, time, _, head_dim = q.shape
    grouped = q.reshape(batch, time, kv_heads, -1, head_dim).transpose(0, 2, 3, 1, 4)
    return grouped.reshape(batch, kv_heads, -1, head_dim)


def output(whole: Partial, q: Queries) -> Queries:
    """The weighted means of the rows of `q`, in the order of axes and the dtype of `q`."""
    batch, time, heads, head_dim = q.shape
    kv_heads = whole.out.shape[1]
    out = (whole.out / whole.total).astype(q.dtype)
    out = out.reshape(batch, kv_heads, heads // kv_heads, time, head_dim)
    return out.transpose(0, 3, 1, 2, 4).reshape(q.shape)


def over_span(rows: Array, span: Span, time: int) -> Partial:
    """Attention to a span's keys, a block of keys at a time if they are many."""
    if _is_one_block(time, span):
        return over_block(rows, span, time)
    keys = jax.tree.map(
        lambda x: jnp.pad(x, _padding(KEY_BLOCK, x, axis=2)),
        {"k": span.k, "v": span.v, "k_scale": span.k_scale, "v_scale": span.v_scale},
    )
    more = _padding(KEY_BLOCK, span.positions, axis=1)
    positions = jnp.pad(span.positions, more, constant_values=UNSEEN)
    farthest = jnp.max(span.last)

    def step(sum: Partial, start: Array) -> tuple[Partial, None]:
        cut = functools.partial(
            jax.lax.dynamic_slice_in_dim, start_index=start, slice_size=KEY_BLOCK
        )
        here = jax.tree.map(functools.partial(cut, axis=2), keys)
        block = Span(positions=cut(positions, axis=1), last=span.last, **here)
        add = lambda: merged(sum, over_block(rows, block, time))  # noqa: E731
        seen = jnp.any(block.positions <= farthest)
        # On a CPU the cond skips blocks that no query sees. On a GPU it would wait for the host.
        asked = lambda: jax.lax.cond(seen, add, lambda: sum)  # noqa: E731
        return jax.lax.platform_dependent(cpu=asked, default=add), None

    one = (*rows.shape[:3], 1)
    sizes = (one, LOWEST), (one, 0), (rows.shape, 0)
    nothing = Partial(*[jnp.full(shape, value, jnp.float32) for shape, value in sizes])
    return jax.lax.scan(step, nothing, jnp.arange(0, positions.shape[1], KEY_BLOCK))[0]


def over_block(rows: Array, span: Span, time: int) -> Partial:
    """Attention of rows, `time` of each query head, to all keys of a span at once."""
    scores = _product("bkrd,bksd->bkrs", rows, span.k) * rows.shape[-1] ** -0.5
    if span.k_scale is not None:
        scores = scores * span.k_scale[:, :, None]
    visible = span.positions[:, None, :] <= span.last[:, :, None]
    by_query = scores.reshape(*scores.shape[:2], -1, time, scores.shape[3])
    scores = jnp.where(visible[:, None, None], by_query, -jnp.inf).reshape(scores.shape)
    peak = jnp.max(scores, axis=-1, keepdims=True, initial=LOWEST)
    weights = jnp.exp(scores - peak)
    scaled = weights
    if span.v_scale is not None:
        scaled = (weights * span.v_scale[:, :, None]).astype(rows.dtype)
    out = _product("bkrs,bksd->bkrd", scaled, span.v)
    return Partial(peak, jnp.sum(weights, axis=-1, keepdims=True), out)


def merged(one: Partial, other: Partial) -> Partial:
    """Attention to both sets of keys."""
    peak = jnp.maximum(one.peak, other.peak)
    a, b = jnp.exp(one.peak - peak), jnp.exp(other.peak - peak)
    return Partial(peak, one.total * a + other.total * b, one.out * a + other.out * b)


def _product(axes: str, rows: Array, other: Array) -> Array:
    """An einsum over [batch, kv_heads, rows, ...] in the dtype of `other`, summed in float32.

    int8 keys and values are widened to the dtype of `rows`, which holds them exactly.
    A single 16-bit row is padded to two: for one, XLA would write all of `other` out in float32.
    """
    other = other.astype(rows.dtype) if other.dtype == jnp.int8 else other
    rows = rows.astype(other.dtype)
    alone = rows.shape[2] == 1 and rows.dtype.itemsize < 4
    pairs = jnp.pad(rows, ((0, 0), (0, 0), (0, 1), (0, 0))) if alone else rows
    precision = product_precision(rows.dtype)
    out = jnp.einsum(axes, pairs, other, precision=precision, preferred_element_type=jnp.float32)
    return out[:, :, :1] if alone else out


def _is_one_block(time: int, span: Span | OwnKeys) -> bool:
    return time * span.k.shape[2] <= QUERY_BLOCK * KEY_BLOCK


def _padding(block: int, x: Array, axis: int) -> list[tuple[int, int]]:
    """The padding that makes an axis of `x` a multiple of `block`."""
    return [(0, -size % block if i == axis else 0) for i, size in enumerate(x.shape)]
