"""One decode step's attention to a long past: a GPU kernel that reads each used slot once."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float, Int

from llama_jax.kernels.blockwise import LOWEST
from llama_jax.ops.attention import Slots
from llama_jax.ops.linear import product_precision

BLOCK = 64
"""Slots that a program reads at once."""
ROWS = 16
"""The fewest rows that a GPU's matrix unit multiplies."""
PROGRAMS = 264
"""How many programs share the work: two for each multiprocessor of an H100."""

Query = Float[Array, "batch kv_heads group head_dim"]
NewKey = Float[Array, "batch kv_heads head_dim"]
Table = Int[Array, "batch width"]
Past = tuple[Slots, Slots] | tuple[Slots, Slots, Array, Array]
"""Keys and values; of int8 also the scales of keys and of values, [batch, kv_heads, slots]."""


def decode_attention(
    q: Float[Array, "batch one heads head_dim"],
    k: Float[Array, "batch one kv_heads head_dim"],
    v: Float[Array, "batch one kv_heads head_dim"],
    past: Past,
    lengths: Int[Array, " batch"],
    *,
    table: Table | None = None,
    interpret: bool = False,
) -> Float[Array, "batch one heads head_dim"]:
    """Softmax attention of each row's newest token over its first `lengths` slots and itself.

    Query head h reads key-value head `h // (heads // kv_heads)`. With a `table`, `past` is two
    pools of pages [pages, kv_heads, 64, head_dim], and slot s of a row lies in page
    `table[row, s // 64]`; a page that there is not is masked. Keys and values of int8 come with
    their scales: nothing is decoded, a key's scale multiplies its score. `interpret` runs the
    kernel without a GPU, slowly. Its reference is `ops.attention.attention`.
    """
    batch, _, heads, head_dim = q.shape
    grouped = q.reshape(batch, k.shape[2], heads // k.shape[2], head_dim)
    part, mass = _in_parts(grouped, (k[:, 0], v[:, 0]), past, lengths, table, interpret=interpret)
    weights = jnp.exp(mass - jnp.max(mass, axis=2, keepdims=True))
    total = jnp.sum(weights, axis=2)[..., None]
    out = jnp.sum(part * weights[..., None], axis=2) / total
    return out.astype(q.dtype).reshape(q.shape)


def _in_parts(
    q: Query,
    own: tuple[NewKey, NewKey],
    past: Past,
    lengths: Int[Array, " batch"],
    table: Table | None,
    *,
    interpret: bool,
) -> tuple[
    Float[Array, "batch kv_heads splits group head_dim"],
    Float[Array, "batch kv_heads splits group"],
]:
    """Attention over each split of the keys, and the split's logsumexp.

    An empty split has the output 0 and the logsumexp minus infinity.
    """
    batch, kv_heads, group, head_dim = q.shape
    slots = past[0].shape[2] if table is None else table.shape[1] * past[0].shape[2]
    if table is not None and past[0].shape[2] != BLOCK:
        raise ValueError(f"decode_attention takes pages of {BLOCK} slots, not {past[0].shape[2]}")
    if slots < BLOCK or head_dim & (head_dim - 1):
        raise ValueError(
            f"decode_attention takes at least {BLOCK} slots and a head_dim that is a power of two, "
            f"not {slots} and {head_dim}; use attention"
        )
    splits = max(1, min(PROGRAMS // (batch * kv_heads), slots // BLOCK))
    rows = max(ROWS, pl.next_power_of_2(group))
    q = jnp.pad(q, ((0, 0), (0, 0), (0, rows - group), (0, 0)))

    def of_head(n: int) -> pl.BlockSpec:
        return pl.BlockSpec((None, None, n, head_dim), lambda b, h, s: (b, h, 0, 0))

    tables = [] if table is None else [table.astype(jnp.int32)]
    of_row = pl.BlockSpec((None, slots // BLOCK), lambda b, h, s: (b, 0))
    one = pl.BlockSpec((None, None, head_dim), lambda b, h, s: (b, h, 0))
    length = pl.BlockSpec((None,), lambda b, h, s: (b,))
    part, mass = pl.pallas_call(
        functools.partial(kernel_of_split, splits=splits, slots=slots, scaled=len(past) == 4),
        out_shape=(
            jax.ShapeDtypeStruct((batch, kv_heads, splits, rows, head_dim), jnp.float32),
            jax.ShapeDtypeStruct((batch, kv_heads, splits, rows), jnp.float32),
        ),
        grid=(batch, kv_heads, splits),
        in_specs=[
            *(of_head(rows), one, one, length),
            *(_of_past(part, paged=bool(tables)) for part in past),
            *[of_row] * len(tables),
        ],
        out_specs=(
            pl.BlockSpec((None, None, None, rows, head_dim), lambda b, h, s: (b, h, s, 0, 0)),
            pl.BlockSpec((None, None, None, rows), lambda b, h, s: (b, h, s, 0)),
        ),
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=2),
        interpret=interpret,
        name="decode_attention",
    )(q, *own, lengths.astype(jnp.int32), *past, *tables)
    return part[:, :, :, :group], mass[..., :group]


def _of_past(part: Array, *, paged: bool) -> pl.BlockSpec:
    """The part of keys, values or scales that a program may read: all slots of its row and head.

    Of a pool it is all pages of its head; the kernel reads those of its row.
    """
    rest = part.shape[2:]
    if paged:
        sizes = (part.shape[0], None, *rest)
        return pl.BlockSpec(sizes, lambda b, h, s: (0, h, *[0] * len(rest)))
    return pl.BlockSpec((None, None, *rest), lambda b, h, s: (b, h, *[0] * len(rest)))


def kernel_of_split(
    q_ref: Any,
    own_k_ref: Any,
    own_v_ref: Any,
    length_ref: Any,
    *rest: Any,
    splits: int,
    slots: int,
    scaled: bool,
) -> None:
    """One split of one key head. Split s reads the blocks s, s + splits, s + 2 * splits, ...

    So every split has work whatever the length. Split 0 also reads the step's own key. With a
    table, block i is the page `table_ref[i]` of a pool.
    """
    *given, part_ref, mass_ref = rest
    past, table = given[: 4 if scaled else 2], given[4 if scaled else 2 :]
    split, length = pl.program_id(2), length_ref[...]
    q = q_ref[...]
    scale = q.shape[1] ** -0.5

    def one(turn: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        out, peak, total = state
        first = (split + turn * splits) * BLOCK
        if table:
            where, visible = _page(past[0].shape[0], table[0], first, length)
        else:
            where, visible = _block(slots, first, length)
        keys, values, *scales = (ref[(*where, ...)] for ref in past)
        if table:
            # 0 times NaN is NaN: what a former owner left is cleared, not only weighted with 0.
            values = jnp.where(visible[:, None], values, 0)
        scores = _product(q, keys.astype(q.dtype) if scaled else keys, along=1) * scale
        if scaled:
            scores = scores * scales[0][None]
        scores = jnp.where(visible[None], scores, -jnp.inf)
        higher = jnp.maximum(peak, jnp.max(scores, axis=1))
        weights, shrunk = jnp.exp(scores - higher[:, None]), jnp.exp(peak - higher)
        total = total * shrunk + jnp.sum(weights, axis=1)
        if scaled:
            weights = weights * jnp.where(visible, scales[1], 0)[None]
            values = values.astype(q.dtype)
        read = _product(weights.astype(values.dtype), values, along=0)
        return out * shrunk[:, None] + read, higher, total

    own_score = jnp.sum(q.astype(jnp.float32) * own_k_ref[...].astype(jnp.float32), axis=1) * scale
    own_value = jnp.broadcast_to(own_v_ref[...].astype(jnp.float32), q.shape)
    has_own = split == 0
    state = (
        jnp.where(has_own, own_value, 0.0),
        jnp.where(has_own, own_score, LOWEST),
        jnp.where(has_own, jnp.ones_like(own_score), 0.0),
    )
    blocks = pl.cdiv(jnp.minimum(length, slots), BLOCK)
    mine = pl.cdiv(jnp.maximum(blocks - split, 0), splits)
    out, peak, total = jax.lax.fori_loop(0, mine, one, state)
    part_ref[...] = out / jnp.where(total > 0, total, 1.0)[:, None]
    mass_ref[...] = peak + jnp.log(total)


def _block(slots: int, first: Array, length: Array) -> tuple[tuple[Any, ...], Array]:
    """Where the block that begins at slot `first` lies, and which of its slots are visible.

    The last block starts at slots - 64, and masks the slots that the one before has read.
    """
    start = jnp.minimum(first, slots - BLOCK)
    slot = start + jnp.arange(BLOCK)
    return (pl.ds(start, BLOCK),), (slot >= first) & (slot < length)


def _page(pages: int, table_ref: Any, first: Array, length: Array) -> tuple[tuple[Any, ...], Array]:
    """The same for the page that holds slot `first`. Its other slots may hold anything."""
    page = table_ref[first // BLOCK]
    visible = (first + jnp.arange(BLOCK) < length) & (page < pages)
    return (jnp.minimum(page, pages - 1),), visible


def _product(x: Array, y: Array, *, along: int) -> Array:
    """The product of two matrices in float32, over the rows of `x` and axis `along` of `y`."""
    return jax.lax.dot_general(
        x,
        y,
        (((1,), (along,)), ((), ())),
        precision=product_precision(x.dtype),
        preferred_element_type=jnp.float32,
    )
