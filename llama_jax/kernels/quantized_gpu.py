"""Products of activations and quantized weights on every platform but a CPU.

Scales of one an output are applied after the product, so XLA widens the weight inside it. Scales of
groups cannot be. There, one row is multiplied number by number and summed by group, and a few rows
of `Int8` group by group: this reads the weight once and writes no decoded copy. For more rows the
weight is decoded first.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from llama_jax.kernels.rows import in_pairs
from llama_jax.ops.linear import dot, product_precision
from llama_jax.ops.swiglu import swiglu
from llama_jax.weights.int4 import MIDDLE, NIBBLES, WORDS, Int4
from llama_jax.weights.int8 import Int8
from llama_jax.weights.weight import Weight

FEW = 8
"""Rows for which sums by group cost less than a decoded weight."""


def product(x: Array, w: Weight) -> Array:
    """`x @ w` of rows [n, in]."""
    parts = w.parts()
    if parts["scale"].ndim == 1:
        return _per_channel(x, w, over=0)
    if len(x) == 1:
        return _by_groups(x, w)
    if isinstance(w, Int8) and len(x) <= FEW:
        return _by_products_of_groups(x, w)
    return in_pairs(x, lambda rows: dot(rows, w.dense().astype(x.dtype), over=0)).astype(x.dtype)


def product_transposed(x: Array, w: Weight) -> Array:
    """`x @ w.T` of rows [n, out]."""
    if w.parts()["scale"].ndim == 1:
        return _per_channel(x, w, over=1)
    return in_pairs(x, lambda rows: dot(rows, w.dense().astype(x.dtype), over=1)).astype(x.dtype)


def feed_forward(x: Array, w1: Weight, w3: Weight, w2: Weight) -> Array:
    """`swiglu(x @ w1, x @ w3) @ w2` of rows [n, dim]."""
    return product(swiglu(product(x, w1), product(x, w3)), w2)


def _per_channel(x: Array, w: Any, over: int) -> Array:
    """The product with the values as they are, and then the scales of the outputs."""
    parts = w.parts()
    scale = parts["scale"].astype(jnp.float32)
    minimum = parts["minimum"].astype(jnp.float32) if "minimum" in parts else None

    def multiply(rows: Array) -> Array:
        values = w.values.astype(rows.dtype)
        given = rows if over == 0 else (rows * scale).astype(rows.dtype)
        sums = dot(given, values, over, preferred_element_type=jnp.float32)
        sums = sums * scale if over == 0 else sums
        if minimum is None:
            return sums.astype(x.dtype)
        wide = rows.astype(jnp.float32)
        more = wide.sum(axis=1, keepdims=True) * minimum if over == 0 else wide @ minimum[:, None]
        return (sums + more).astype(x.dtype)

    return in_pairs(x, multiply)


def _by_groups(x: Array, w: Any) -> Array:
    """One row: numbers times inputs summed in each group, then scaled, then summed.

    The sums [1, groups, out] are in memory.
    """
    parts = w.parts()
    scale, inputs = parts["scale"].astype(jnp.float32), w.shape[0]
    groups = x.astype(jnp.float32).reshape(len(x), len(scale), inputs // len(scale))
    if isinstance(w, Int4):
        terms = (
            groups[:, :, word * NIBBLES + nibble, None]
            * (jax.lax.shift_right_logical(w.words[word], jnp.int32(4 * nibble)) & 15)
            for word in range(WORDS)
            for nibble in range(NIBBLES)
        )
    else:
        values = w.values.reshape(len(scale), -1, w.shape[1])
        terms = (
            groups[:, :, j, None] * values[:, j].astype(jnp.float32) for j in range(groups.shape[2])
        )
    sums, whole = functools.reduce(jnp.add, terms), groups.sum(axis=2)[:, :, None]
    if isinstance(w, Int4) and w.minimum is None:
        sums = sums - MIDDLE * whole
    sums = sums * scale
    if "minimum" in parts:
        sums = sums + whole * parts["minimum"].astype(jnp.float32)
    return sums.sum(axis=1).astype(x.dtype)


def _by_products_of_groups(x: Array, w: Int8) -> Array:
    """Few rows: a matrix product a group, then scaled, then summed: [groups, n, out] is in memory.

    XLA widens the numbers inside the products. Of 4-bit ones it writes a decoded copy first.
    """
    scale, minimum = w.scale, w.minimum
    groups = x.reshape(len(x), len(scale), -1)
    sums = jax.lax.dot_general(
        groups,
        w.values.reshape(len(scale), -1, w.shape[1]).astype(x.dtype),
        (((2,), (1,)), ((1,), (0,))),
        precision=product_precision(x.dtype),
        preferred_element_type=jnp.float32,
    )
    out = (sums * scale[:, None].astype(jnp.float32)).sum(axis=0)
    if minimum is not None:
        out += dot(groups.astype(jnp.float32).sum(axis=2), minimum.astype(jnp.float32), over=0)
    return out.astype(x.dtype)
