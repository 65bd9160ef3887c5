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


def _plain(x: Array, w: Array) -> Array:
    if len(x) == 1 and x.dtype.itemsize < 4:
        # A GPU multiplies a small matrix by one row element by element, writes that to memory, and
        # sums it. Two rows stay a product, and become one with the others that share `x`.
        return _plain(jnp.pad(x, ((0, 1), (0, 0))), w)[:1]
    return jnp.matmul(x, w, precision=product_precision(x.dtype))


def _on_cpu(x: Array, w: Array) -> Array:
    if x.dtype.itemsize < 4:
        return _narrow(x, w)
    if len(x) == 1 and _is_cut_well(w):
        return _in_pieces(x, w)
    return _plain(x, w)


def _narrow(x: Array, w: Array) -> Array:
    """`x @ w` in a 16-bit dtype, without a copy of `w` in float32.

    XLA has such a product on a CPU only for two rows or more and a float32 result.
    """
    rows = jnp.pad(x, ((0, max(0, 2 - len(x))), (0, 0)))
    return jnp.matmul(rows, w, preferred_element_type=jnp.float32)[: len(x)].astype(x.dtype)


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
