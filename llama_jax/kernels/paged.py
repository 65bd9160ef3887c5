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

TURN = 16
"""Pages, of any rows, that a decode step multiplies at once."""
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
        add = functools.partial(_add, row, blockwise.over_block(rows[row], span, 1))
        return jax.lax.fori_loop(0, jnp.minimum(ends[-1] - i * TURN, TURN), add, sum)

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
