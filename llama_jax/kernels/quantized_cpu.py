"""CPU forms: products of activations and quantized weights.

One row reads each weight once, where it lies: 32 neighbouring rows of the weight are one partial
sum, in plain additions that XLA makes one loop. Several rows meet a block of 256 rows of the
weight, decoded to float32, in a real loop: XLA would decode a whole weight before a product that
is not in one. docs/notes/performance.md has what was measured.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from llama_jax.kernels.cpu import widened
from llama_jax.ops.linear import dot
from llama_jax.weights.fp8 import Fp8
from llama_jax.weights.groups import group_of
from llama_jax.weights.int4 import GROUP, MIDDLE, NIBBLES, WORDS, Int4
from llama_jax.weights.weight import Weight

BLOCK, LEAST_ROWS = 256, 32
"""Rows of a weight that are decoded at once, and the fewest where they are long."""
BLOCK_NUMBERS = 3 * 2**19
"""Numbers decoded at once, 6 MB of them: a block is to stay in the cache that the cores share."""
PARTIAL = 32
"""Rows of a weight that are one partial sum."""


def product(x: Array, w: Weight) -> Array:
    """`x @ w` of rows [n, in], in the form in which a CPU reads `w` fastest."""
    rows = x.astype(jnp.float32)
    if not jax.sharding.get_abstract_mesh().empty:  # a loop over blocks would gather what is cut
        return w.matmul(x)
    if len(rows) == 1 and (size := partial_size(w)):
        return _by_partial_sums(rows, w, size).astype(x.dtype)
    if size := block_size(w):
        return _by_blocks(rows, w, size).astype(x.dtype)
    return w.matmul(x)


def product_transposed(x: Array, w: Weight) -> Array:
    """`x @ w.T` of rows [n, out]: each block of the weight's rows gives its part of the result."""
    size = block_size(w)
    if not size or not jax.sharding.get_abstract_mesh().empty:
        return w.matmul_transposed(x)
    rows, inputs = x.astype(jnp.float32), w.shape[0]

    scale, minimum = w.parts()["scale"], w.parts().get("minimum")
    after: Any = 0.0
    if scale.ndim == 1:  # one an output
        after = 0.0 if minimum is None else dot(rows, minimum[None].astype(jnp.float32), over=1)
        rows = rows * scale.astype(jnp.float32)

    def part(i: Array) -> Array:
        return dot(rows, _block(w, i, size), over=1)

    parts = jax.lax.map(part, jnp.arange(inputs // size))
    found = parts.swapaxes(0, 1)  # [n, blocks, rows of a block]
    if isinstance(w, Int4):
        found = found.reshape(len(rows), -1, WORDS, NIBBLES, size // GROUP).transpose(0, 1, 4, 2, 3)
    return (found.reshape(len(rows), inputs) + after).astype(x.dtype)


def partial_size(w: Weight) -> int:
    """How many rows of a weight make a partial sum; 0 where its scales allow none."""
    if isinstance(w, Int4):
        return GROUP
    group = group_of(w.parts()["scale"], w.shape[0]) or PARTIAL
    size = next((n for n in (PARTIAL, PARTIAL // 2) if group % n == 0), 0)
    return size if size and w.shape[0] % size == 0 else 0


def block_size(w: Weight) -> int:
    """How many rows of a weight to decode at once, in whole groups; 0 where none divides it."""
    inputs = w.shape[0]
    step = GROUP if isinstance(w, Int4) else group_of(w.parts()["scale"], inputs) or 1
    most = max(LEAST_ROWS, step, min(BLOCK, BLOCK_NUMBERS // w.shape[1]))
    least = min(LEAST_ROWS, inputs)
    sizes = range(most // step * step, least - 1, -step)
    return next((size for size in sizes if inputs % size == 0), 0)


def _by_partial_sums(x: Array, w: Weight, size: int) -> Array:
    """The product of one row: sums of `size` products each, scaled, then added up."""
    # The barrier makes the weight depend on the row, so nothing is decoded ahead of a loop.
    x, w = jax.lax.optimization_barrier((x, w))
    groups = x.reshape(-1, size)
    terms = _int4_terms(groups, w) if isinstance(w, Int4) else _int8_terms(groups, w)
    sums, whole = functools.reduce(jnp.add, terms), groups.sum(axis=1, keepdims=True)
    if isinstance(w, Int4) and w.minimum is None:
        sums = sums - MIDDLE * whole
    scale, minimum = (_each(w.parts().get(name), len(sums)) for name in ("scale", "minimum"))
    if scale is not None:
        sums = sums * scale
    if minimum is not None:
        sums = sums + whole * minimum
    out = dot(jnp.ones((1, len(sums)), sums.dtype), sums, over=0)
    return _scaled_after(out, x, w)


def _int8_terms(groups: Array, w: Any) -> Iterator[Array]:
    """What each row of a group adds: [groups, out]."""
    values = _numbers(w).reshape(len(groups), -1, w.shape[1])
    return (groups[:, j, None] * _decoded(values[:, j], w) for j in range(groups.shape[1]))


def _int4_terms(groups: Array, w: Int4) -> Iterator[Array]:
    """The same of four bits each, masked where they lie; their power of two is taken from `x`."""
    for word in range(WORDS):
        for nibble in range(NIBBLES):
            power, words = 4 * nibble, w.words[word]
            if nibble == NIBBLES - 1:  # a mask would leave the sign
                power, bits = 0, jax.lax.shift_right_logical(words, jnp.int32(4 * nibble))
            else:
                bits = words & jnp.int32(15 << power)
            x = groups[:, word * NIBBLES + nibble, None] * 2.0**-power
            yield x * bits.astype(jnp.float32)


def _each(scale: Array | None, groups: int) -> Array | None:
    """The scale of each partial sum, where scales are one a group."""
    if scale is None or scale.ndim == 1:
        return None
    return jnp.repeat(scale.astype(jnp.float32), groups // len(scale), axis=0)


def _by_blocks(x: Array, w: Weight, size: int) -> Array:
    """The product of several rows: the sum of the products with each block of the weight."""
    parts = x.reshape(len(x), -1, size)
    if isinstance(w, Int4):  # in the order in which a block's numbers leave their words
        parts = parts.reshape(len(x), -1, size // GROUP, WORDS, NIBBLES).transpose(0, 1, 3, 4, 2)
        parts = parts.reshape(len(x), -1, size)
    parts = parts.swapaxes(0, 1)

    def add(i: Array, sums: Array) -> Array:
        return sums + dot(parts[i], _block(w, i, size), over=0)

    first = jnp.zeros((len(x), w.shape[1]), jnp.float32)
    sums = jax.lax.fori_loop(0, len(parts), add, first)
    return _scaled_after(sums, x, w)


def _scaled_after(sums: Array, x: Array, w: Weight) -> Array:
    """The sums of products, times the outputs' scales and plus their minima, if there are any."""
    parts = w.parts()
    if parts["scale"].ndim == 2:
        return sums
    sums = sums * parts["scale"].astype(jnp.float32)
    if "minimum" not in parts:
        return sums
    return sums + x.sum(axis=1, keepdims=True) * parts["minimum"].astype(jnp.float32)


def _block(w: Weight, i: Array, size: int) -> Array:
    """Block `i` of a weight, in float32: [size, out], without scales that are one an output."""
    start = i * size
    if isinstance(w, Int4):
        words = _rows(w.words, start // GROUP, size // GROUP, axis=1)
        shifts = jnp.arange(0, 4 * NIBBLES, 4, dtype=jnp.int32).reshape(1, NIBBLES, 1, 1)
        block = ((words[:, None] >> shifts) & 15).astype(jnp.float32)
        block = block - MIDDLE if w.minimum is None else block
        expand: Callable[[Array], Array] = lambda scale: scale[None, None]  # noqa: E731
    else:
        block = _decoded(_rows(_numbers(w), start, size, axis=0), w)
        group = group_of(w.parts()["scale"], w.shape[0]) or size
        block = block.reshape(size // group, group, -1)
        expand = lambda scale: scale[:, None]  # noqa: E731
    for name, apply in (("scale", jnp.multiply), ("minimum", jnp.add)):
        scale = w.parts().get(name)
        if scale is not None and scale.ndim == 2:
            count = len(scale) * size // w.shape[0]
            block = apply(block, expand(_float_rows(scale, i * count, count)))
    return block.reshape(size, w.shape[1])


def _rows(part: Array, start: Array, count: int, axis: int) -> Array:
    return jax.lax.dynamic_slice_in_dim(part, start, count, axis)


def _float_rows(scale: Array, start: Array, count: int) -> Array:
    """Rows of scales in float32. Of bfloat16 the bits are sliced, because XLA would widen all.

    The barrier makes them depend on the turn of the loop, before which XLA would copy all bits.
    """
    if scale.dtype != jnp.bfloat16:
        return _rows(scale, start, count, axis=0).astype(jnp.float32)
    start, scale = jax.lax.optimization_barrier((start, scale))
    return widened(_rows(jax.lax.bitcast_convert_type(scale, jnp.uint16), start, count, axis=0))


def _numbers(w: Any) -> Array:
    """A weight's numbers of 8 bits: integers, or the bits of floating-point ones."""
    return w.bits if isinstance(w, Fp8) else w.values


def _decoded(bits: Array, w: Weight) -> Array:
    """A slice of a weight's numbers in float32.

    A float8_e4m3fn is a float16 without the last 7 bits of its mantissa and the first of its
    exponent, whose bias is 8 more: a shift and a factor of 256, which is exact.
    """
    if not isinstance(w, Fp8):
        return bits.astype(jnp.float32)
    wide = bits.astype(jnp.uint16)
    half = (wide & 0x80) << 8 | (wide & 0x7F) << 7
    return jax.lax.bitcast_convert_type(half, jnp.float16).astype(jnp.float32) * 256
