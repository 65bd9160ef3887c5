"""Blocks of quantized weights in float32, for the CPU forms.

Each turn of a loop decodes one block. Outside a loop XLA would decode the whole weight before the
product.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from llama_jax.kernels.cpu import widened
from llama_jax.weights.fp8 import Fp8
from llama_jax.weights.groups import group_of
from llama_jax.weights.int4 import GROUP, MIDDLE, NIBBLES, WORDS, Int4
from llama_jax.weights.weight import Weight

INPUTS, LEAST_INPUTS = 256, 32
"""Inputs that are decoded at once, and the fewest where a weight has many outputs."""
NUMBERS = 3 * 2**19
"""Numbers decoded at once, 6 MB of them: a block is to stay in the cache that the cores share."""
LEAST_OUTPUTS = 128
"""The fewest outputs that are decoded at once, where a weight has many inputs."""


def inputs_of_block(w: Weight) -> int:
    """How many inputs of a weight to decode at once, in whole groups; 0 where none divides them."""
    inputs = w.shape[0]
    step = GROUP if isinstance(w, Int4) else group_of(w.parts()["scale"], inputs) or 1
    most = max(LEAST_INPUTS, step, min(INPUTS, NUMBERS // w.shape[1]))
    least = min(LEAST_INPUTS, inputs)
    sizes = range(most // step * step, least - 1, -step)
    return next((size for size in sizes if inputs % size == 0), 0)


def outputs_of_block(w: Weight) -> int:
    """How many outputs to decode at once, at most half of them; 0 where too few divide them.

    Half, because XLA makes no loop of one turn.
    """
    inputs, outputs = w.shape
    most = min(outputs // 2, max(LEAST_OUTPUTS, NUMBERS // inputs))
    return next((n for n in range(most, LEAST_OUTPUTS - 1, -1) if outputs % n == 0), 0)


def block(w: Weight, i: Array, size: int, axis: int) -> Array:
    """Block `i` of so many inputs (axis 0) or outputs (axis 1), without scales of one an output.

    The inputs of an `Int4` come in the order of their words; `in_order` gives `x` the same.
    """
    if isinstance(w, Int4):
        words = cut(w.words, i, size if axis else size // GROUP, axis + 1)
        shifts = jnp.arange(0, 4 * NIBBLES, 4, dtype=jnp.int32).reshape(1, NIBBLES, 1, 1)
        found = ((words[:, None] >> shifts) & 15).astype(jnp.float32)
        found = found - MIDDLE if w.minimum is None else found
    else:
        numbers = decoded(cut(numbers_of(w), i, size, axis), w)
        groups = len(numbers) // (group_of(w.parts()["scale"], w.shape[0]) or len(numbers))
        found = numbers.reshape(groups, -1, numbers.shape[1])
    for name, apply in (("scale", jnp.multiply), ("minimum", jnp.add)):
        scale = w.parts().get(name)
        if scale is not None and scale.ndim == 2:
            count = size if axis else len(scale) * size // w.shape[0]
            each = _scales(scale, i, count, axis)
            found = apply(found, each if isinstance(w, Int4) else each[:, None])
    return found.reshape(-1, found.shape[-1])


def in_order(x: Array, w: Weight, size: int) -> Array:
    """`x` [n, in] in the order in which the inputs of a block of `size` leave it."""
    if not isinstance(w, Int4):
        return x
    parts = x.reshape(len(x), -1, size // GROUP, WORDS, NIBBLES)
    return parts.transpose(0, 1, 3, 4, 2).reshape(x.shape)


def out_of_order(y: Array, w: Weight) -> Array:
    """`y` [n, inputs of a block], as a block gives them, in the order of the weight."""
    if not isinstance(w, Int4):
        return y
    return y.reshape(len(y), WORDS, NIBBLES, -1).transpose(0, 3, 1, 2).reshape(y.shape)


def cut(part: Array, i: Array, size: int, axis: int) -> Array:
    """Entries `i * size` to `(i + 1) * size` of an axis."""
    return jax.lax.dynamic_slice_in_dim(part, i * size, size, axis)


def numbers_of(w: Any) -> Array:
    """A weight's numbers of 8 bits: integers, or the bits of floating-point ones."""
    return w.bits if isinstance(w, Fp8) else w.values


def decoded(bits: Array, w: Weight) -> Array:
    """A slice of a weight's numbers in float32.

    A float8_e4m3fn is a float16 without the last 7 bits of its mantissa and the first of its
    exponent, whose bias is 8 more: a shift and a factor of 256, which is exact.
    """
    if not isinstance(w, Fp8):
        return bits.astype(jnp.float32)
    wide = bits.astype(jnp.uint16)
    half = (wide & 0x80) << 8 | (wide & 0x7F) << 7
    return jax.lax.bitcast_convert_type(half, jnp.float16).astype(jnp.float32) * 256


def _scales(scale: Array, i: Array, size: int, axis: int) -> Array:
    """A block's scales in float32.

    Those of bfloat16 are sliced as bits, because XLA would widen all of them. The barrier makes the
    bits depend on the turn of the loop. Without it XLA would copy all of them before the loop.
    """
    if scale.dtype != jnp.bfloat16:
        return cut(scale, i, size, axis).astype(jnp.float32)
    i, scale = jax.lax.optimization_barrier((i, scale))
    return widened(cut(jax.lax.bitcast_convert_type(scale, jnp.uint16), i, size, axis))
