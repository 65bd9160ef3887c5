"""The one door through which a weight meets an activation."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@runtime_checkable
class Weight(Protocol):
    """A weight that is more than an array (quantized, adapted): a pytree that multiplies."""

    def matmul(self, x: Array) -> Array:
        """`x @ w`, for an [in, out] weight, in the dtype of `x`."""
        ...


def linear(
    x: Float[Array, "*batch in_dim"], w: Float[Array, "in_dim out_dim"] | Weight
) -> Float[Array, "*batch out_dim"]:
    """`x @ w`."""
    if isinstance(w, Weight):
        return w.matmul(x)
    return jnp.matmul(x, w, precision=product_precision(x.dtype))


def product_precision(dtype: jnp.dtype) -> jax.lax.Precision | None:
    """The precision of a matrix product of `dtype`.

    float32 means float32: on recent GPUs XLA would otherwise round its inputs to TF32's 10 bits.
    """
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None
