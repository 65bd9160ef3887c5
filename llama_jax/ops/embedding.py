"""From tokens to vectors."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def embed(
    table: Float[Array, "vocab dim"], ids: Int[Array, "*batch"]
) -> Float[Array, "*batch dim"]:
    """The rows of `table` with these ids."""
    return jnp.take(table, ids, axis=0)
