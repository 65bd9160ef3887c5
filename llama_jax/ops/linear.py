"""Matrix products of activations and weights: the reference of `kernels.linear`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def linear(
    x: Float[Array, "*batch in_dim"], w: Float[Array, "in_dim out_dim"]
) -> Float[Array, "*batch out_dim"]:
    """`x @ w`, summed in float32 and returned in the dtype of `x`."""
    return dot(x, w, over=0, preferred_element_type=jnp.float32).astype(x.dtype)


def linear_transposed(
    x: Float[Array, "*batch in_dim"], w: Float[Array, "out_dim in_dim"]
) -> Float[Array, "*batch out_dim"]:
    """`x @ w.T`: the output of a model whose output weight is its embedding, [vocab, dim]."""
    return dot(x, w, over=1, preferred_element_type=jnp.float32).astype(x.dtype)


def dot(x: Array, w: Array, over: int, **options: Any) -> Array:
    """The product of `x` [..., n] and a matrix, summed over axis `over` of the matrix.

    `dot(x, w, 0)` is `x @ w`, and `dot(x, w, 1)` is `x @ w.T` without a transpose.
    """
    sums = (((x.ndim - 1,), (over,)), ((), ()))
    return jax.lax.dot_general(x, w, sums, precision=product_precision(x.dtype), **options)


def product_precision(dtype: jnp.dtype) -> jax.lax.Precision | None:
    """The precision to ask of a matrix product of `dtype`.

    float32 means float32: recent GPUs would otherwise round its inputs to TF32's 10 bits.
    """
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None
