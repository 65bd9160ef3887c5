"""From tokens to vectors."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def rows_at(
    table: Float[Array, "rows dim"], ids: Int[Array, "*batch"]
) -> Float[Array, "*batch dim"]:
    """The rows of `table` with these ids."""
    if table.dtype.itemsize < 4:
        return jax.lax.platform_dependent(table, ids, cpu=_widened_late, default=_taken)
    return _taken(table, ids)


def _taken(table: Array, ids: Array) -> Array:
    return jnp.take(table, ids, axis=0)


def _widened_late(table: Array, ids: Array) -> Array:
    # A CPU without 16-bit floats widens what it reads. To XLA the table now depends on the ids,
    # so it widens their rows, and not all of a constant table ahead of a loop.
    return _taken(*jax.lax.optimization_barrier((table, ids)))
