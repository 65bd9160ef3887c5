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
    if ids.size == 1:
        # Of a table cut over a mesh XLA brings all of it together for one row, and not for two.
        two = jnp.take(table, jnp.pad(ids.reshape(1), (0, 1)), axis=0)
        return two[:1].reshape(*ids.shape, table.shape[1])
    return jnp.take(table, ids, axis=0)


def _widened_late(table: Array, ids: Array) -> Array:
    # A CPU without 16-bit floats widens what it reads. To XLA the table now depends on the ids,
    # so it widens their rows, and not all of a constant table ahead of a loop.
    return _taken(*jax.lax.optimization_barrier((table, ids)))
