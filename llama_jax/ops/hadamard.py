"""The Hadamard transform of vectors: a rotation that spreads one large number over all of them."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from llama_jax.ops.linear import dot


def hadamard(x: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
    """`x @ H / sqrt(n)`, in float32 and returned in the dtype of `x`; n is a power of two.

    H is Sylvester's matrix of 1 and -1, `H[i, j] = (-1) ** popcount(i & j)`, its own inverse after
    the division. It is the Kronecker product of two smaller ones, so 8192 numbers meet a matrix of
    64 rows and one of 128.
    """
    n = x.shape[-1]
    if n & (n - 1) or not n:
        raise ValueError(f"a Hadamard transform of {n} numbers is not known, only of powers of two")
    left = 1 << (n.bit_length() - 1) // 2
    h = x.astype(jnp.float32).reshape(*x.shape[:-1], left, n // left)
    h = dot(h, jnp.asarray(_matrix(n // left)), over=0)
    h = dot(h.swapaxes(-1, -2), jnp.asarray(_matrix(left)), over=0).swapaxes(-1, -2)
    return (h.reshape(x.shape) / np.float32(n**0.5)).astype(x.dtype)


def _matrix(n: int) -> Float[np.ndarray, "n n"]:
    """Sylvester's matrix: [[H, H], [H, -H]] of the one of half its size."""
    matrix = np.ones((1, 1), np.float32)
    while len(matrix) < n:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix
