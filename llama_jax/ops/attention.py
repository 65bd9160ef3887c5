"""Grouped-query attention (arXiv:2305.13245) over keys and values that lie in several places.

A block of keys gives a partial result, and partial results add up in any order, since the
softmax's peak and sum travel with them (arXiv:2112.05682). So a long text holds the scores of one
block of queries and keys at a time, and nothing of [time, time].
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from llama_jax.ops.linear import product_precision

Slots = Float[Array, "batch kv_heads slots head_dim"]

QUERIES = 512
KEYS = 1024
"""How many queries and keys a block has, where there are more pairs of them than in one block."""
OWN = 128
"""How many queries of a text without a past that fits one block are taken at once, with no key
beyond them all."""
LOWEST = float(jnp.finfo(jnp.float32).min)
"""The peak of no scores at all: lower than any, and finite, so that its distance to one is."""
UNSEEN = int(jnp.iinfo(jnp.int32).max)
"""The position of a key that no query sees."""


class Span(NamedTuple):
    """Some keys and values and their positions; a query sees those up to its `last`.

    One `last` can serve every query of a row.
    """

    k: Float[Array, "batch kv_heads span head_dim"]
    v: Float[Array, "batch kv_heads span head_dim"]
    positions: Int[Array, "#batch span"]
    last: Int[Array, "batch _"]


class Own(NamedTuple):
    """The keys and values of the queries' own tokens: query i sees the first i + 1."""

    k: Float[Array, "batch kv_heads time head_dim"]
    v: Float[Array, "batch kv_heads time head_dim"]


class _Partial(NamedTuple):
    """What some keys add to each row: sums of weights, and of weighted values, over exp(peak)."""

    peak: Float[Array, "batch kv_heads rows 1"]
    total: Float[Array, "batch kv_heads rows 1"]
    out: Float[Array, "batch kv_heads rows head_dim"]


def attention(
    q: Float[Array, "batch time heads head_dim"], spans: Sequence[Span | Own]
) -> Float[Array, "batch time heads head_dim"]:
    """Softmax attention of each query over all its visible keys, in whatever span they lie.

    Query head h reads key-value head `h // (heads // kv_heads)`. Every query must see a key.
    Scores and softmax are float32; the weights meet the values in the values' dtype.
    """
    return _attention(q, tuple(spans))


def step_attention(
    q: Float[Array, "batch time heads head_dim"],
    k: Float[Array, "batch time kv_heads head_dim"],
    v: Float[Array, "batch time kv_heads head_dim"],
    past: tuple[Slots, Slots] | None,
    lengths: Int[Array, " batch"],
) -> Float[Array, "batch time heads head_dim"]:
    """`attention` of a step's queries over the first `lengths` slots and the step's own tokens.

    What `decode_attention` computes as a kernel, by XLA's products and for steps of any length.
    """
    spans: list[Span | Own] = [Own(k.swapaxes(1, 2), v.swapaxes(1, 2))]
    if past is not None:
        slots = jnp.arange(past[0].shape[2])[None]
        spans.insert(0, Span(*past, slots, lengths[:, None] - 1))
    return attention(q, spans)


@jax.jit  # traced and lowered once, not once a layer
def _attention(q: Array, spans: tuple[Span | Own, ...]) -> Array:
    time = q.shape[1]
    if time <= QUERIES or all(_is_one_block(time, span) for span in spans):
        # Not beside a past, which would be read once for each part.
        step = OWN if len(spans) == 1 and isinstance(spans[0], Own) else time
        cut = [q[:, i : i + step] for i in range(0, time, step)]
        parts = [_of_queries(part, _seen(spans, i * step, part)) for i, part in enumerate(cut)]
        return jnp.concatenate(parts, axis=1)
    spans = _seen(spans, 0, q)
    lasts = [jnp.broadcast_to(span.last, q.shape[:2]) for span in spans]

    @jax.checkpoint  # a gradient computes a block's scores again, rather than keep those of all
    def of_block(block: tuple[Array, list[Array]]) -> Array:
        q, lasts = block
        return _of_queries(q, tuple(s._replace(last=x) for s, x in zip(spans, lasts, strict=True)))

    def in_blocks(x: Array) -> Array:
        # The last query fills the last block: even there every query sees a key.
        whole = jnp.pad(x, _up_to(QUERIES, x, axis=1), mode="edge")
        return whole.reshape(x.shape[0], -1, QUERIES, *x.shape[2:]).swapaxes(0, 1)

    out = jax.lax.map(of_block, jax.tree.map(in_blocks, (q, lasts)))
    return out.swapaxes(0, 1).reshape(q.shape[0], -1, *q.shape[2:])[:, :time]


def _seen(spans: tuple[Span | Own, ...], first: int, q: Array) -> tuple[Span, ...]:
    """What the queries `q` see, of which the first is the one of index `first` in its text."""
    end = first + q.shape[1]

    def one(span: Span | Own) -> Span:
        if isinstance(span, Span):
            return span
        k, v = span.k[:, :, :end], span.v[:, :, :end]
        return Span(k, v, jnp.arange(end)[None], jnp.arange(first, end)[None])

    return tuple(map(one, spans))


def _of_queries(q: Array, spans: tuple[Span, ...]) -> Array:
    batch, time, _, head_dim = q.shape
    kv_heads = spans[0].k.shape[1]
    # A group's queries become rows of one product with their shared keys: no key is repeated.
    grouped = q.reshape(batch, time, kv_heads, -1, head_dim).transpose(0, 2, 3, 1, 4)
    rows = grouped.reshape(batch, kv_heads, -1, head_dim)
    partials = [_over_span(rows, span, time) for span in spans]
    whole = functools.reduce(_merged, partials)
    out = (whole.out / whole.total).astype(q.dtype)
    return out.reshape(grouped.shape).transpose(0, 3, 1, 2, 4).reshape(q.shape)


def _over_span(rows: Array, span: Span, time: int) -> _Partial:
    """What the keys of a span add, a block at a time if they are many."""
    if _is_one_block(time, span):
        return _over_block(rows, span, time)
    k, v = (jnp.pad(x, _up_to(KEYS, x, axis=2)) for x in (span.k, span.v))
    more = _up_to(KEYS, span.positions, axis=1)
    positions = jnp.pad(span.positions, more, constant_values=UNSEEN)
    farthest = jnp.max(span.last)

    def step(sum: _Partial, start: Array) -> tuple[_Partial, None]:
        cut = functools.partial(jax.lax.dynamic_slice_in_dim, start_index=start, slice_size=KEYS)
        block = Span(cut(k, axis=2), cut(v, axis=2), cut(positions, axis=1), span.last)
        add = lambda: _merged(sum, _over_block(rows, block, time))  # noqa: E731
        seen = jnp.any(block.positions <= farthest)
        # To ask first saves a CPU the blocks that nothing sees, and would make a GPU wait.
        asked = lambda: jax.lax.cond(seen, add, lambda: sum)  # noqa: E731
        return jax.lax.platform_dependent(cpu=asked, default=add), None

    one = (*rows.shape[:3], 1)
    nothing = _Partial(jnp.full(one, LOWEST), jnp.zeros(one), jnp.zeros(rows.shape))
    return jax.lax.scan(step, nothing, jnp.arange(0, positions.shape[1], KEYS))[0]


def _over_block(rows: Array, span: Span, time: int) -> _Partial:
    scores = _product("bkrd,bksd->bkrs", rows, span.k) * rows.shape[-1] ** -0.5
    visible = span.positions[:, None, :] <= span.last[:, :, None]
    by_query = scores.reshape(*scores.shape[:2], -1, time, scores.shape[3])
    scores = jnp.where(visible[:, None, None], by_query, -jnp.inf).reshape(scores.shape)
    peak = jnp.max(scores, axis=-1, keepdims=True, initial=LOWEST)
    weights = jnp.exp(scores - peak)
    out = _product("bkrs,bksd->bkrd", weights, span.v)
    return _Partial(peak, jnp.sum(weights, axis=-1, keepdims=True), out)


def _merged(one: _Partial, other: _Partial) -> _Partial:
    """What two sets of keys add together."""
    peak = jnp.maximum(one.peak, other.peak)
    a, b = jnp.exp(one.peak - peak), jnp.exp(other.peak - peak)
    return _Partial(peak, one.total * a + other.total * b, one.out * a + other.out * b)


def _product(axes: str, rows: Array, other: Array) -> Array:
    """An einsum over [batch, kv_heads, rows, ...] in the dtype of `other`, summed in float32.

    A 16-bit row is never alone: XLA would first write out all of `other` in float32.
    """
    rows = rows.astype(other.dtype)
    alone = rows.shape[2] == 1 and rows.dtype.itemsize < 4
    pairs = jnp.pad(rows, ((0, 0), (0, 0), (0, 1), (0, 0))) if alone else rows
    precision = product_precision(rows.dtype)
    out = jnp.einsum(axes, pairs, other, precision=precision, preferred_element_type=jnp.float32)
    return out[:, :, : rows.shape[2]]


def _is_one_block(time: int, span: Span | Own) -> bool:
    return time * span.k.shape[2] <= QUERIES * KEYS


def _up_to(block: int, x: Array, axis: int) -> list[tuple[int, int]]:
    """The padding that makes an axis of `x` a multiple of `block`."""
    return [(0, -size % block if i == axis else 0) for i, size in enumerate(x.shape)]
