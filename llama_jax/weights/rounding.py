"""Arrays rounded to 8 or 4 bits and scales."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

TRIED = 20
"""How many scales are tried for a group of 4-bit integers."""
LEAST = 1e-30
"""The least scale: zeros need one too, and nothing may be divided by 0."""


def rounded_int8(array: Any, group: int | None) -> tuple[Array, Array]:
    """Integers from -127 to 127, int8 [in, out], and scales: float32 [out], or of groups
    bfloat16 [in / group, out].

    The integers are those of the scale once it is rounded, so a bfloat16 one costs no error.
    """
    _check_group(array, group)
    return _rounded_int8(jnp.asarray(array), group)


def rounded_int4(array: Any, group: int) -> tuple[Array, Array]:
    """Integers from 0 to 15 that stand for -8 to 7, uint8 [in, out], and scales [in / group, out].

    The number furthest from 0 may become -8, where there is one step more, so a scale has the sign
    that makes it negative. `TRIED` scales around that one are tried, each made the best for the
    integers that it gives (the least-squares solution), and the one with the least squared error
    is kept. So the error is at most that of rounding to the furthest number, as GGUF's Q4_0 does.
    """
    _check_group(array, group)
    return _rounded_int4(jnp.asarray(array), group)


@jax.jit
def rounded_fp8(array: Any) -> tuple[Array, Array]:
    """float8_e4m3fn numbers [in, out] and scales, float32 [out]."""
    array = jnp.asarray(array).astype(jnp.float32)
    largest = float(jnp.finfo(jnp.float8_e4m3fn).max)
    scale = jnp.maximum(jnp.abs(array).max(axis=0) / largest, LEAST)
    # A quotient may be rounded to just above the largest number, which would become NaN.
    values = jnp.clip(array / scale, -largest, largest)
    return values.astype(jnp.float8_e4m3fn), scale


@functools.partial(jax.jit, static_argnums=1)
def _rounded_int8(array: Array, group: int | None) -> tuple[Array, Array]:
    inputs, outputs = array.shape
    groups = array.astype(jnp.float32).reshape(-1, group or inputs, outputs)
    scale = jnp.maximum(jnp.abs(groups).max(axis=1) / 127, LEAST)
    scale = scale.astype(jnp.bfloat16) if group else scale
    values = jnp.clip(jnp.round(groups / scale[:, None].astype(jnp.float32)), -127, 127)
    return values.astype(jnp.int8).reshape(array.shape), scale if group else scale[0]


@functools.partial(jax.jit, static_argnums=1)
def _rounded_int4(array: Array, group: int) -> tuple[Array, Array]:
    groups = array.astype(jnp.float32).reshape(-1, group, array.shape[1])
    low, high = groups.min(axis=1), groups.max(axis=1)
    furthest = jnp.where(-low >= high, low, high)
    first = _never_0(furthest / -8)

    def integers(scale: Array) -> Array:
        return jnp.clip(jnp.round(groups / scale[:, None]), -8, 7)

    def error(scale: Array) -> Array:
        return jnp.square(groups - integers(scale) * scale[:, None]).sum(axis=1)

    def attempt(i: Array, best: tuple[Array, Array]) -> tuple[Array, Array]:
        found = integers(first * (0.7 + i * (0.6 / TRIED)))
        squares = jnp.square(found).sum(axis=1)
        scale = _never_0((groups * found).sum(axis=1) / jnp.maximum(squares, 1))
        wrong = error(scale)
        better = wrong < best[1]
        return jnp.where(better, scale, best[0]), jnp.where(better, wrong, best[1])

    scale, _ = jax.lax.fori_loop(0, TRIED, attempt, (first, error(first)))
    return (integers(scale) + 8).astype(jnp.uint8).reshape(array.shape), scale


def _never_0(scale: Array) -> Array:
    return jnp.where(jnp.abs(scale) < LEAST, LEAST, scale)


def _check_group(array: Any, group: int | None) -> None:
    if len(array.shape) != 2:
        raise ValueError(f"an array of shape {list(array.shape)} is no matrix [in, out]")
    if group is not None and (group < 1 or array.shape[0] % group):
        raise ValueError(
            f"group={group} does not divide the {array.shape[0]} inputs of a weight of shape "
            f"{list(array.shape)}; use a divisor, or int8 with a scale an output (group=None)"
        )
