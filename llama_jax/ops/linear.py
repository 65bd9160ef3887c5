"""The one door through which a weight meets an activation."""

from __future__ import annotations

import functools
import math
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

PIECES = 16
"""How many parts of its rows a matrix is read in when one float32 row multiplies it on a CPU."""


@runtime_checkable
class Weight(Protocol):
    """A weight that is more than an array (quantized, adapted): a pytree that multiplies."""

    def matmul(self, x: Array) -> Array:
        """`x @ w`, for an [in, out] weight, in the dtype of `x`."""
        ...


def linear(
    x: Float[Array, "*batch in_dim"], w: Float[Array, "in_dim out_dim"] | Weight
) -> Float[Array, "*batch out_dim"]:
    """`x @ w`, in the form that the platform multiplies fastest."""
    if isinstance(w, Weight):
        return w.matmul(x)
    return _product(x, w)


def linear_transposed(
    x: Float[Array, "*batch in_dim"], w: Float[Array, "out_dim in_dim"]
) -> Float[Array, "*batch out_dim"]:
    """`x @ w.T`, for an [out, in] weight: the embedding of a model that uses it at both ends."""
    return _transposed(x, w)


def product_precision(dtype: jnp.dtype) -> jax.lax.Precision | None:
    """The precision of a matrix product of `dtype`.

    float32 means float32: on recent GPUs XLA would otherwise round its inputs to TF32's 10 bits.
    """
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None


@jax.jit  # traced and lowered once for each shape, not once a layer
def _product(x: Array, w: Array) -> Array:
    rows = x.reshape(-1, x.shape[-1])
    out = jax.lax.platform_dependent(rows, w, cpu=_on_cpu, default=_plain)
    return out.reshape(*x.shape[:-1], w.shape[1])


@jax.jit
def _transposed(x: Array, w: Array) -> Array:
    rows = x.reshape(-1, x.shape[-1])
    plain = lambda x, w: _plain(x, w.T)  # noqa: E731
    out = jax.lax.platform_dependent(rows, w, cpu=_transposed_on_cpu, default=plain)
    return out.reshape(*x.shape[:-1], w.shape[0])


def _plain(x: Array, w: Array) -> Array:
    rows = _at_least_two(x)
    return jnp.matmul(rows, w, precision=product_precision(x.dtype))[: len(x)]


def _on_cpu(x: Array, w: Array) -> Array:
    if len(x) == 1 and x.dtype == jnp.float32 and _is_cut_well(w):
        return _in_pieces(x, w)
    return _narrowed(_at_least_two(x), w)[: len(x)]


def _transposed_on_cpu(x: Array, w: Array) -> Array:
    if len(x) == 1 and x.dtype == jnp.float32 and _is_cut_well(w):
        # Of a product that is no batch XLA would make one loop with the norm before it, whose
        # steps run across the rows of `w`.
        pieces = w.reshape(PIECES, -1, w.shape[1])
        same = jnp.broadcast_to(x, (PIECES, 1, w.shape[1]))
        out = jnp.einsum("pxi,poi->pxo", same, pieces, precision=product_precision(x.dtype))
        return out.reshape(1, -1)
    return _narrowed(_at_least_two(x), w.T)[: len(x)]


def _at_least_two(rows: Array) -> Array:
    """`rows`, and one of zeros where there is one of a 16-bit dtype.

    XLA makes one such row times a matrix a product of single numbers and a sum: a GPU writes the
    products of a small matrix to memory between the two, a CPU writes out the matrix in float32.
    Two rows stay a product, and on a GPU become one with the others that share `x`.
    """
    alone = len(rows) == 1 and rows.dtype.itemsize < 4
    return jnp.pad(rows, ((0, 1), (0, 0))) if alone else rows


def _narrowed(x: Array, w: Array) -> Array:
    """`x @ w` summed in float32, without which a CPU would copy a 16-bit `w` to float32."""
    precision = product_precision(x.dtype)
    out = jnp.matmul(x, w, precision=precision, preferred_element_type=jnp.float32)
    return out.astype(x.dtype)


def _is_cut_well(w: Array) -> bool:
    # A small matrix is not worth a second step, and a mesh cuts the large ones its own way.
    whole = jax.sharding.get_abstract_mesh().empty
    return whole and w.shape[0] % PIECES == 0 and math.prod(w.shape) >= 2**18


def _in_pieces(x: Array, w: Array) -> Array:
    """`x @ w` for one row, as a sum over pieces of the rows of `w`.

    A thread reads a piece from end to end, where XLA's own product of one row gives each thread a
    stripe of columns, and as many stripes as the cores cannot share evenly.
    """
    depth = w.shape[0] // PIECES
    x, w = x.reshape(PIECES, 1, depth), w.reshape(PIECES, depth, -1)
    parts = jnp.matmul(x, w, precision=product_precision(x.dtype))
    # Additions join the next step's loop; a sum would be a call of its own.
    return functools.reduce(jnp.add, parts)
