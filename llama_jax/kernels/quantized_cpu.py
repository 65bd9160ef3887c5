"""CPU forms: products of activations and quantized weights.

One row reads each weight once, where it lies: 32 neighbouring rows of the weight are one partial
sum, in plain additions that XLA makes one loop. Several rows meet a block of the weight, decoded
to float32, in a real loop. docs/notes/performance.md has what was measured.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from llama_jax.kernels.quantized_blocks import (
    block,
    cut,
    decoded,
    in_order,
    inputs_of_block,
    numbers_of,
    out_of_order,
    outputs_of_block,
)
from llama_jax.ops.linear import dot
from llama_jax.weights.groups import group_of
from llama_jax.weights.int4 import GROUP, MIDDLE, NIBBLES, WORDS, Int4
from llama_jax.weights.weight import Weight

MANY = 256
"""From so many rows on a block has all inputs of some outputs. Blocks of inputs add up all outputs
of all rows at every turn."""
PARTIAL = 32
"""Rows of a weight that are one partial sum."""


def product(x: Array, w: Weight) -> Array:
    """`x @ w` of rows [n, in], in the form in which a CPU reads `w` fastest."""
    rows = x.astype(jnp.float32)
    if not jax.sharding.get_abstract_mesh().empty:  # a loop over blocks would gather what is cut
        return w.matmul(x)
    if len(rows) == 1 and (size := partial_size(w)):
        return _by_partial_sums(rows, w, size).astype(x.dtype)
    if len(rows) >= MANY and (size := outputs_of_block(w)):
        return _by_outputs(rows, w, size).astype(x.dtype)
    if size := inputs_of_block(w):
        return _by_inputs(rows, w, size).astype(x.dtype)
    return w.matmul(x)


def product_transposed(x: Array, w: Weight) -> Array:
    """`x @ w.T` of rows [n, out]: each block of inputs gives its part of the result."""
    size = inputs_of_block(w)
    if not size or not jax.sharding.get_abstract_mesh().empty:
        return w.matmul_transposed(x)
    rows, inputs = x.astype(jnp.float32), w.shape[0]

    scale, minimum = w.parts()["scale"], w.parts().get("minimum")
    after: Any = 0.0
    if scale.ndim == 1:  # one an output
        after = 0.0 if minimum is None else dot(rows, minimum[None].astype(jnp.float32), over=1)
        rows = rows * scale.astype(jnp.float32)

    def put(i: Array, out: Array) -> Array:
        part = out_of_order(dot(rows, block(w, i, size, axis=0), over=1), w)
        return jax.lax.dynamic_update_slice_in_dim(out, part, i * size, axis=1)

    out = jax.lax.fori_loop(0, inputs // size, put, zeros(rows, inputs))
    return (out + after).astype(x.dtype)


def partial_size(w: Weight) -> int:
    """How many rows of a weight make a partial sum; 0 where its scales allow none."""
    if isinstance(w, Int4):
        return GROUP
    group = group_of(w.parts()["scale"], w.shape[0]) or PARTIAL
    size = next((n for n in (PARTIAL, PARTIAL // 2) if group % n == 0), 0)
    return size if size and w.shape[0] % size == 0 else 0


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
    values = numbers_of(w).reshape(len(groups), -1, w.shape[1])
    return (groups[:, j, None] * decoded(values[:, j], w) for j in range(groups.shape[1]))


def _int4_terms(groups: Array, w: Int4) -> Iterator[Array]:
    """The same of 4-bit numbers.

    Each is masked and not shifted; `x` is divided by its power of two.
    """
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


def _by_inputs(x: Array, w: Weight, size: int) -> Array:
    """The product of several rows: the sum of the products with each block of inputs."""
    x = in_order(x, w, size)

    def add(i: Array, sums: Array) -> Array:
        return sums + dot(cut(x, i, size, axis=1), block(w, i, size, axis=0), over=0)

    sums = jax.lax.fori_loop(0, w.shape[0] // size, add, zeros(x, w.shape[1]))
    return _scaled_after(sums, x, w)


def _by_outputs(x: Array, w: Weight, size: int) -> Array:
    """The product of many rows: each block of outputs gives its part of the result."""
    x = in_order(x, w, w.shape[0])

    def put(i: Array, out: Array) -> Array:
        part = dot(x, block(w, i, size, axis=1), over=0)
        return jax.lax.dynamic_update_slice_in_dim(out, part, i * size, axis=1)

    out = jax.lax.fori_loop(0, w.shape[1] // size, put, zeros(x, w.shape[1]))
    return _scaled_after(out, x, w)


def zeros(x: Array, width: int) -> Array:
    """Zeros [n, width] that depend on `x`: XLA makes others for all loops as a program starts.

    For a prompt of 512 tokens of M they took 0.8 GB. `x > inf` is false for every number, NaN
    included, but XLA does not fold it.
    """
    never = x[:1, :1] > jnp.inf
    return jnp.broadcast_to(jnp.where(never, 1.0, 0.0), (len(x), width))


def _scaled_after(sums: Array, x: Array, w: Weight) -> Array:
    """The sums of products, times the outputs' scales and plus their minima, if there are any."""
    parts = w.parts()
    if parts["scale"].ndim == 2:
        return sums
    sums = sums * parts["scale"].astype(jnp.float32)
    if "minimum" not in parts:
        return sums
    return sums + x.sum(axis=1, keepdims=True) * parts["minimum"].astype(jnp.float32)
