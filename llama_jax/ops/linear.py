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
    if x.size == x.shape[-1] and x.dtype != jnp.float32:
        return _one_row(x, w)
    return _product(x, w)


def product_precision(dtype: jnp.dtype) -> jax.lax.Precision | None:
    """The precision of a matrix product of `dtype`.

    float32 means float32: on recent GPUs XLA would otherwise round its inputs to TF32's 10 bits.
    """
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None


def _product(x: Array, w: Array) -> Array:
    return jnp.matmul(x, w, precision=product_precision(x.dtype))


def _one_row(x: Array, w: Array) -> Array:
    """`x @ w` where `x` is one row of a narrow dtype, which a row of zeros joins.

    XLA makes one row's product with a small matrix a multiplication of the whole matrix and a sum:
    a GPU writes the products to memory between them, a CPU the matrix in float32. Two rows stay a
    product, and on a GPU become one with the others that share `x`.
    """
    rows = jnp.pad(x.reshape(1, -1), ((0, 1), (0, 0)))
    return _product(rows, w)[:1].reshape(*x.shape[:-1], -1)
