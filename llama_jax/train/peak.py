"""How fast this device multiplies matrices, which a step's speed is held against."""

from __future__ import annotations

import time
from typing import Any

import jax
import jax.numpy as jnp

SIZE = 2048
"""Rows and columns: large enough for every device to be near its best."""


def measured_peak(dtype: Any) -> float:
    """Floating-point operations a second of a large product in `dtype`, the best of five."""
    x = jnp.ones((SIZE, SIZE), dtype)
    product = jax.jit(jnp.matmul).lower(x, x).compile()
    best = 0.0
    for _ in range(5):
        start = time.monotonic()
        product(x, x).block_until_ready()
        best = max(best, 2 * SIZE**3 / (time.monotonic() - start))
    return best
