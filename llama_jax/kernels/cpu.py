"""CPU forms: matrix products of few rows, the embedding's rows, the likeliest token.

Decoding reads every weight once a token, so a product of one row should run at the speed of the
memory. XLA's own product of one row does not, and some of its 16-bit products first write the
whole weight out in float32. docs/notes/performance.md has what was measured.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from llama_jax.kernels.platforms import multiplies_by_outputs
from llama_jax.kernels.rows import in_pairs, over_rows
from llama_jax.ops.embedding import embed
from llama_jax.ops.linear import dot, product_precision

ROW_BLOCKS = 16
"""Into how many blocks of rows a weight is cut when one float32 row multiplies it."""
PARTIAL_SUMS = 8
"""How many partial sums a bfloat16 row's product keeps. With more, XLA writes each part out."""
FEW = 128
"""Fewer rows than this are multiplied faster where XLA takes the weight as its first matrix."""
LARGE = 2**18
"""Numbers in a matrix from which a second step pays."""


@over_rows
def product(x: Array, w: Array, over: int) -> Array:
    """`dot(x, w, over)` of rows [n, in], in the form in which a CPU reads `w` fastest."""
    if len(x) == 1 and x.dtype == jnp.float32 and _is_large(w, axis=0, parts=ROW_BLOCKS):
        return _by_row_blocks(x, w) if over == 0 else _by_row_blocks_transposed(x, w)
    if len(x) == 1 and x.dtype == w.dtype == jnp.bfloat16 and _is_large(w, over, PARTIAL_SUMS):
        return _by_partial_sums(x, w, over)
    by_outputs = over == 1 and x.dtype == w.dtype and multiplies_by_outputs("cpu", w.dtype)
    if by_outputs and len(x) < FEW and _is_large(w, 0, 1):
        return _weight_first(x, w)
    return in_pairs(x, lambda rows: _in_float32(rows, w, over))


def widen_late(table: Array, ids: Array) -> Array:
    """`embed` of a 16-bit table.

    A CPU casts what it reads to float32. The barrier makes the table depend on the ids, so that
    XLA casts the rows it reads, and not the whole table before the loop.
    """
    return embed(*jax.lax.optimization_barrier((table, ids)))


def max_and_argmax(x: Array) -> tuple[Array, Array]:
    """As a maximum and a minimum over indices: these vectorize, XLA's own argmax does not."""
    largest = jnp.max(x, axis=-1, keepdims=True)
    ids = jax.lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1)
    return largest[..., 0], jnp.min(jnp.where(x < largest, x.shape[-1], ids), axis=-1)


def _is_large(w: Array, axis: int, parts: int) -> bool:
    """Whether it pays to cut `w`. Under a mesh it is cut already."""
    whole = jax.sharding.get_abstract_mesh().empty
    return whole and w.shape[axis] % parts == 0 and math.prod(w.shape) >= LARGE


def _in_float32(x: Array, w: Array, over: int) -> Array:
    """The product summed in float32; otherwise a CPU would copy a 16-bit `w` to float32."""
    return dot(x, w, over, preferred_element_type=jnp.float32).astype(x.dtype)


def _by_row_blocks(x: Array, w: Array) -> Array:
    """`x @ w` for one row: x [16, 1, in/16] times w [16, in/16, out], summed over the 16.

    Each thread reads blocks of `w` from end to end. XLA's own product gives each thread stripes of
    columns, and more stripes than the cores can share evenly.
    """
    depth = w.shape[0] // ROW_BLOCKS
    x, w = x.reshape(ROW_BLOCKS, 1, depth), w.reshape(ROW_BLOCKS, depth, -1)
    parts = jnp.matmul(x, w, precision=product_precision(x.dtype))
    # Additions fuse with what follows; `jnp.sum` would be a library call.
    return functools.reduce(jnp.add, parts)


def _by_row_blocks_transposed(x: Array, w: Array) -> Array:
    """`x @ w.T` for one row: w [16, out/16, in] gives 16 parts of the output.

    XLA would fuse a product without the batch axis with the norm before it, into a loop that runs
    across the rows of `w`.
    """
    blocks = w.reshape(ROW_BLOCKS, -1, w.shape[1])
    same = jnp.broadcast_to(x, (ROW_BLOCKS, 1, w.shape[1]))
    out = jnp.einsum("pxi,poi->pxo", same, blocks, precision=product_precision(x.dtype))
    return out.reshape(1, -1)


def _weight_first(x: Array, w: Array) -> Array:
    """`x @ w.T` as `(w @ x.T).T`: w [out, in] times x [n, in].

    XLA's library packs the second matrix of a product for every call, and reads the first as it
    is. The barrier keeps XLA from exchanging the two again.
    """
    out = jax.lax.optimization_barrier(dot(w, x, 1, preferred_element_type=jnp.float32))
    return out.T.astype(x.dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _by_partial_sums(x: Array, w: Array, over: int) -> Array:
    """The product of one bfloat16 row: 8 parts of `w` read side by side, then added up.

    One loop widens what it reads and multiplies it. XLA's library for 16-bit products repacks the
    whole matrix for each row, which takes twice as long.
    """
    # The barrier makes the weight depend on the row, so nothing is widened ahead of a loop.
    x, w = jax.lax.optimization_barrier((x, w))
    each = x.astype(jnp.float32).reshape(PARTIAL_SUMS, -1)
    # XLA slices integers in place; to slice bfloat16 it would write all of `w` out in float32.
    bits = jax.lax.bitcast_convert_type(w, jnp.uint16)
    parts = jnp.split(bits, PARTIAL_SUMS, axis=over)
    along = (lambda part: part[:, None]) if over == 0 else (lambda part: part)
    terms = (along(row) * widened(part) for row, part in zip(each, parts, strict=True))
    sums = functools.reduce(jnp.add, terms)
    return dot(jnp.ones((1, sums.shape[over]), sums.dtype), sums, over).astype(x.dtype)


@_by_partial_sums.defjvp
def _by_partial_sums_jvp(
    over: int, primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> Any:
    # A bitcast has no derivative, so both terms are plain products.
    (x, w), (x_dot, w_dot) = primals, tangents
    out = _by_partial_sums(x, w, over)
    return out, _in_float32(x_dot, w, over) + _in_float32(x, w_dot, over)


def widened(bits: Array) -> Array:
    """bfloat16 numbers, given as bits, in float32: a bfloat16 is the upper half of a float32."""
    upper = jax.lax.shift_left(bits.astype(jnp.uint32), jnp.uint32(16))
    return jax.lax.bitcast_convert_type(upper, jnp.float32)
