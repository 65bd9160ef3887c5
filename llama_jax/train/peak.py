"""How fast this device multiplies matrices, which a step's speed is held against."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from llama_jax.train.recipe import Recipe

SIZE, LARGEST = 2048, 8192
"""Rows and columns of the product that is timed; a device that is fast gets a larger one."""
SHORT = 1e-3
"""Seconds below which a product's start is a part of its time."""
TIMES = 5


class Peak(NamedTuple):
    """The rate of which the MFU is a part."""

    flops: float
    """Floating-point operations a second of one device."""
    measured: bool
    """Whether it was found by a product, and is not a device's stated one."""


def peak_for_recipe(recipe: Recipe) -> Peak:
    """The peak that a recipe states, or a measured one."""
    if stated := recipe.run.peak_tflops:
        return Peak(stated * 1e12, measured=False)
    return measured_peak(recipe.step.dtype)


def measured_peak(dtype: Any) -> Peak:
    """The rate of a large product in `dtype`, the best of several.

    On a machine that does other work it is too low: a run raises it to what its steps achieve.
    """
    best, size = 0.0, SIZE
    while True:
        seconds = _shortest(size, dtype)
        best = max(best, 2 * size**3 / seconds)
        if seconds >= SHORT or size >= LARGEST:
            return Peak(best, measured=True)
        size *= 2


def _shortest(size: int, dtype: Any) -> float:
    """Seconds of a product of two matrices [size, size]."""
    x = jnp.ones((size, size), dtype)
    product = jax.jit(jnp.matmul).lower(x, x).compile()
    found = []
    for _ in range(TIMES):
        start = time.monotonic()
        product(x, x).block_until_ready()
        found.append(time.monotonic() - start)
    return min(found)
