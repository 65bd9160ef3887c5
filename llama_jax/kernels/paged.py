"""Attention to a past in pages, for any platform.

A pool of pages [pages, kv_heads, page, head_dim] serves all rows, and a table says which pages are
a row's own, in order. A row's pages are merged one at a time in that order, so its output is the
same to the bit whatever its neighbours, its place in the batch and its pages' places in the pool.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from llama_jax.kernels import blockwise
from llama_jax.kernels.blockwise import Partial, Span
from llama_jax.ops.attention import Lengths, NewKeys, Queries
from llama_jax.ops.linear import product_precision

TURN = 8
"""Pages, of any rows, that a decode step multiplies at once. Those of S are 3 MB, which stay near a
core between two passes."""
LANES = 16
"""Sums that a query's product with a key is made of: the float32 numbers of a 512-bit register."""
SUMS = 8
"""Sums that a page's weighted mean of values is made of."""
BLOCK = 8
"""Pages of each row that a chunk of a prompt multiplies at once."""

Pool = Float[Array, "pages kv_heads page head_dim"] | Int[Array, "pages kv_heads page head_dim"]
Scales = Float[Array, "pages kv_heads page"]
Table = Int[Array, "batch width"]
"""Which page holds the positions `i * page` and up of a row; `pages`, or more, where none does."""


class Pages(NamedTuple):
    """The past of all rows in one layer."""

    k: Pool
    v: Pool
    table: Table
    k_scale: Scales | None = None
    """The factor of each key, where keys and values are int8."""
    v_scale: Scales | None = None


def step_attention(q: Queries, k: NewKeys, v: NewKeys, past: Pages, lengths: Lengths) -> Queries:
    """Attention of one new token a row to its first `lengths` positions and itself.

    The used pages of all rows form one list: rows of 130 and 10 positions have pages 0, 1 and 2 of
    row 0 and page 0 of row 1. So a long row among short ones costs what its own pages cost.
    """
    rows, size = blockwise.query_rows(q, k.shape[2]), past.k.shape[2]
    lengths = _held(past, lengths)
    used = (lengths + size - 1) // size
    ends = jnp.cumsum(used)

    def turn(i: Array, sum: Partial) -> Partial:
        listed = i * TURN + jnp.arange(TURN)
        row = jnp.minimum(jnp.sum(listed[:, None] >= ends, axis=1), len(used) - 1)
        place = listed - (ends - used)[row]
        page = past.table.at[row, place].get(mode="clip")
        span = _span(past, page[:, None], place * size, lengths[row])
        add = functools.partial(_add, row, over_pages(rows[row], span))
        return jax.lax.fori_loop(0, jnp.minimum(ends[-1] - i * TURN, TURN), add, sum)

    over_pages = _of_one_query if _takes_sums(rows, past) else _of_queries
    whole = jax.lax.fori_loop(0, (ends[-1] + TURN - 1) // TURN, turn, _own(rows, k, v))
    return blockwise.output(whole, q)


def chunk_attention(q: Queries, k: NewKeys, v: NewKeys, past: Pages, lengths: Lengths) -> Queries:
    """Attention of a chunk of tokens a row to its first `lengths` positions and to one another."""
    time, size = q.shape[1], past.k.shape[2]
    rows, lengths = blockwise.query_rows(q, k.shape[2]), _held(past, lengths)

    def block(i: Array, sum: Partial) -> Partial:
        page = past.table.at[:, i * BLOCK + jnp.arange(BLOCK)].get(mode="clip")
        first = jnp.full_like(lengths, i * BLOCK * size)
        span = _span(past, page, first, lengths)
        return blockwise.merged(sum, blockwise.over_block(rows, span, time))

    blocks = (jnp.max(lengths) + BLOCK * size - 1) // (BLOCK * size)
    whole = jax.lax.fori_loop(0, blocks, block, _own(rows, k, v))
    return blockwise.output(whole, q)


def _held(past: Pages, lengths: Lengths) -> Lengths:
    """How many positions of each row lie in pages: none of a row without pages."""
    known = jnp.sum(past.table < len(past.k), axis=1, dtype=jnp.int32)
    return jnp.minimum(lengths, known * past.k.shape[2])


def _span(past: Pages, page: Int[Array, "batch some"], first: Lengths, lengths: Lengths) -> Span:
    """Some pages of each row side by side. The first holds the positions from `first` on."""

    def side_by_side(pool: Array) -> Array:
        found = pool.at[page].get(mode="clip").swapaxes(1, 2)  # [batch, kv_heads, some, page, ...]
        return found.reshape(*found.shape[:2], -1, *found.shape[4:])

    positions = first[:, None] + jnp.arange(page.shape[1] * past.k.shape[2])
    last = lengths[:, None] - 1
    seen = (positions <= last)[:, None]
    k, v = side_by_side(past.k), side_by_side(past.v)
    # A page's former owner may have left a NaN, which a weight of 0 does not hide: 0 * NaN is NaN.
    if past.k_scale is None or past.v_scale is None:
        return Span(k, jnp.where(seen[..., None], v, 0), positions, last)
    scales = side_by_side(past.k_scale), jnp.where(seen, side_by_side(past.v_scale), 0)
    return Span(k, v, positions, last, *scales)


def _of_queries(rows: Array, span: Span) -> Partial:
    """Attention of each row's queries to one page."""
    return blockwise.over_block(rows, span, 1)


def _takes_sums(rows: Array, past: Pages) -> bool:
    """Whether `_of_one_query` serves: a key head has one query head, and all is float32."""
    float32 = rows.dtype == past.k.dtype == past.v.dtype == jnp.float32
    whole = past.k.shape[2] % SUMS == 0 and past.k.shape[3] % LANES == 0
    return float32 and rows.shape[2] == 1 and whole


def _of_one_query(rows: Float[Array, "turn kv_heads 1 head_dim"], span: Span) -> Partial:
    """`_of_queries` as sums of products, which a CPU's cores share.

    XLA gives a batch of products with one row each to one core.
    """
    # Behind the barrier each page is copied once, into a core's cache, and not sought by each term.
    seen = (span.positions <= span.last)[:, None]
    k, v = jnp.where(seen[..., None], span.k, 0), span.v
    k, v = jax.lax.optimization_barrier((k, v))
    terms = rows.shape[3] // LANES
    sums = _sum_of_products(_parts(rows, 3, terms), _parts(k, 3, terms))
    scores = jnp.matmul(sums, jnp.ones((LANES, 1)), precision=product_precision(k.dtype))[..., 0]
    scores = jnp.where(seen, scores * rows.shape[3] ** -0.5, -jnp.inf)
    peak = jnp.max(scores, axis=-1, keepdims=True, initial=blockwise.LOWEST)
    weights = jnp.exp(scores - peak)
    terms = v.shape[2] // SUMS
    sums = _sum_of_products(_parts(weights[..., None], 2, terms), _parts(v, 2, terms))
    out = functools.reduce(jnp.add, _parts(sums, 2, SUMS))
    return Partial(peak[..., None], jnp.sum(weights, axis=-1)[..., None, None], out)


def _sum_of_products(some: list[Array], others: list[Array]) -> Array:
    products = (x * y for x, y in zip(some, others, strict=True))
    return jax.lax.optimization_barrier(functools.reduce(jnp.add, products))


def _parts(x: Array, axis: int, count: int) -> list[Array]:
    """`x` cut along an axis into neighbouring parts."""
    return jnp.split(x, count, axis=axis)


def _own(rows: Array, k: NewKeys, v: NewKeys) -> Partial:
    """Attention of each token to itself and to those of the step before it."""
    index = jnp.arange(k.shape[1])[None]
    span = Span(k.swapaxes(1, 2), v.swapaxes(1, 2), index, index)
    return blockwise.over_span(rows, span, k.shape[1])


def _add(row: Int[Array, " turn"], found: Partial, i: Array, sum: Partial) -> Partial:
    """`sum` with the i-th of the partials `found`, which is of row `row[i]`."""
    cut = functools.partial(jax.lax.dynamic_slice_in_dim, slice_size=1)
    mine = Partial(*(cut(x, row[i]) for x in sum))
    more = blockwise.merged(mine, Partial(*(cut(x, i) for x in found)))
    put = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=row[i], axis=0)
    return Partial(*(put(x, new) for x, new in zip(sum, more, strict=True)))
