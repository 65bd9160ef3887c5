"""Wrappers of products: batch axes are flattened to rows, and a single 16-bit row padded to two."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array

from llama_jax.weights.table import BATCH


class Product(Protocol):
    """The product of vectors and a matrix, summed over an axis of the matrix."""

    def __call__(self, x: Array, w: Array, over: int) -> Array: ...


def over_rows(product: Product) -> Product:
    """A product of [n, in] with a matrix as one of [..., in]: 2 x 3 vectors are 6 rows."""

    @functools.wraps(product)
    def of_any(x: Array, w: Array, over: int) -> Array:
        out = product(x.reshape(-1, x.shape[-1]), w, over)
        return out.reshape(*x.shape[:-1], w.shape[1 - over])

    return of_any


def in_pairs(x: Array, multiply: Callable[[Array], Array]) -> Array:
    """`multiply(x)`, each row beside a row of zeros where a device has one row of a 16-bit dtype.

    XLA turns one such row times a matrix into elementwise products and a sum: a GPU writes the
    products of a small matrix to memory, a CPU writes the matrix out in float32. Two rows stay a
    matrix product, which a GPU can fuse with the others that share `x`.
    """
    if x.dtype.itemsize >= 4 or len(x) > _devices_along_batch():
        return multiply(x)
    rows = jnp.pad(x[:, None], ((0, 0), (0, 1), (0, 0)))
    return multiply(rows.reshape(-1, x.shape[1])).reshape(len(x), 2, -1)[:, 0]


def _devices_along_batch() -> int:
    """Into how many parts the mesh of `jax.set_mesh` cuts a batch."""
    mesh = jax.sharding.get_abstract_mesh()
    return math.prod(mesh.shape.get(axis, 1) for axis in BATCH)
