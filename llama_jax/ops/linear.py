"""The one door through which a weight meets an activation."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

PIECES = 16
"""How many parts of its rows a matrix is read in when one float32 row multiplies it on a CPU."""
STRANDS = 8
"""How many parts of a sum are read side by side when one bfloat16 row multiplies a matrix there.

More, and XLA writes out each part before it multiplies.
"""

ROW_AXES = ("data", "fsdp")
"""Of a mesh, those that cut the rows of a batch."""


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
    return _product(x, w, 0)


def linear_transposed(
    x: Float[Array, "*batch in_dim"], w: Float[Array, "out_dim in_dim"]
) -> Float[Array, "*batch out_dim"]:
    """`x @ w.T`, for an [out, in] weight: the embedding of a model that uses it at both ends."""
    return _product(x, w, 1)


def product_precision(dtype: jnp.dtype) -> jax.lax.Precision | None:
    """The precision of a matrix product of `dtype`.

    float32 means float32: on recent GPUs XLA would otherwise round its inputs to TF32's 10 bits.
    """
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None


@functools.partial(jax.jit, static_argnums=2)  # traced and lowered once a shape, not once a layer
def _product(x: Array, w: Array, over: int) -> Array:
    """`x` times `w`, summed over that axis of `w`."""
    rows = x.reshape(-1, x.shape[-1])
    cpu, default = (functools.partial(f, over=over) for f in (_on_cpu, _plain))
    out = jax.lax.platform_dependent(rows, w, cpu=cpu, default=default)
    return out.reshape(*x.shape[:-1], w.shape[1 - over])


def _plain(x: Array, w: Array, over: int) -> Array:
    return _by_two(x, lambda rows: _dot(rows, w, over).astype(x.dtype))


def _on_cpu(x: Array, w: Array, over: int) -> Array:
    if len(x) == 1 and x.dtype == jnp.float32 and _is_cut_well(w, PIECES, over=0):
        return _in_pieces(x, w) if over == 0 else _in_pieces_transposed(x, w)
    if len(x) == 1 and x.dtype == w.dtype == jnp.bfloat16 and _is_cut_well(w, STRANDS, over):
        return _in_strands(x, w, over)
    return _by_two(x, lambda rows: _in_float32(rows, w, over))


def _by_two(x: Array, multiply: Callable[[Array], Array]) -> Array:
    """`multiply` of the rows, each beside one of zeros where a device has one of a 16-bit dtype.

    XLA makes one such row times a matrix a product of single numbers and a sum: a GPU writes the
    products of a small matrix to memory between the two, a CPU writes out the matrix in float32.
    Two rows stay a product, and on a GPU become one with the others that share `x`.
    """
    if x.dtype.itemsize >= 4 or len(x) > _devices_of_rows():
        return multiply(x)
    rows = jnp.pad(x[:, None], ((0, 0), (0, 1), (0, 0)))
    return multiply(rows.reshape(-1, x.shape[1])).reshape(len(x), 2, -1)[:, 0]


def _devices_of_rows() -> int:
    """Over how many devices the mesh of `jax.set_mesh` cuts the rows of a batch."""
    mesh = jax.sharding.get_abstract_mesh()
    return math.prod(mesh.shape.get(axis, 1) for axis in ROW_AXES)


def _dot(x: Array, w: Array, over: int, **options: Any) -> Array:
    """`x @ w` or `x @ w.T`, without a transpose, which a CPU would make in float32."""
    sums = (((x.ndim - 1,), (over,)), ((), ()))
    return jax.lax.dot_general(x, w, sums, precision=product_precision(x.dtype), **options)


def _in_float32(x: Array, w: Array, over: int) -> Array:
    """The product summed in float32, without which a CPU would copy a 16-bit `w` to float32."""
    return _dot(x, w, over, preferred_element_type=jnp.float32).astype(x.dtype)


def _is_cut_well(w: Array, parts: int, over: int) -> bool:
    # A small matrix is not worth a second step, and a mesh cuts the large ones its own way.
    whole = jax.sharding.get_abstract_mesh().empty
    return whole and w.shape[over] % parts == 0 and math.prod(w.shape) >= 2**18


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


def _in_pieces_transposed(x: Array, w: Array) -> Array:
    """`x @ w.T` for one row, piece by piece of the rows of `w`.

    Of a product that is no batch XLA would make one loop with the norm before it, whose steps run
    across the rows of `w`.
    """
    pieces = w.reshape(PIECES, -1, w.shape[1])
    same = jnp.broadcast_to(x, (PIECES, 1, w.shape[1]))
    out = jnp.einsum("pxi,poi->pxo", same, pieces, precision=product_precision(x.dtype))
    return out.reshape(1, -1)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _in_strands(x: Array, w: Array, over: int) -> Array:
    """The product of one bfloat16 row, as a sum over strands of `w` that are read side by side.

    One loop widens what it reads and multiplies it; XLA's library for 16-bit products packs the
    matrix anew for each row, which takes twice as long. What the loop leaves, an eighth of the sum
    in float32, a product with ones adds up.
    """
    # To XLA the weight now depends on the row, so it widens nothing ahead of a loop over rows.
    x, w = jax.lax.optimization_barrier((x, w))
    each = x.astype(jnp.float32).reshape(STRANDS, -1)
    # As whole numbers, whose parts XLA takes as they are; for those of bfloat16 it would write out
    # all of `w` in float32.
    bits = jax.lax.bitcast_convert_type(w, jnp.uint16)
    strands = jnp.split(bits, STRANDS, axis=over)
    along = (lambda part: part[:, None]) if over == 0 else (lambda part: part)
    terms = (along(part) * _widened(strand) for part, strand in zip(each, strands, strict=True))
    sums = functools.reduce(jnp.add, terms)
    return _dot(jnp.ones((1, sums.shape[over])), sums, over).astype(x.dtype)


@_in_strands.defjvp
def _in_strands_jvp(over: int, primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> Any:
    # Bits have no derivative.
    (x, w), (x_dot, w_dot) = primals, tangents
    return _in_strands(x, w, over), _in_float32(x_dot, w, over) + _in_float32(x, w_dot, over)


def _widened(bits: Array) -> Array:
    """The float32 numbers whose upper halves these are: bfloat16's."""
    return jax.lax.bitcast_convert_type(bits.astype(jnp.uint32) << 16, jnp.float32)
