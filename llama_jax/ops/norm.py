"""Root-mean-square normalisation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def rms_norm(
    x: Float[Array, "*batch dim"], scale: Float[Array, " dim"], eps: float
) -> Float[Array, "*batch dim"]:
    """Scales each vector of `x` to unit root-mean-square, then by `scale` (arXiv:1910.07467).

    The mean is taken in float32 whatever `x` is: bfloat16 loses it at dim >= 4096. The result is
    rounded to the dtype of `x` before it meets `scale`, as Meta does it.
    """
    h = x.astype(jnp.float32)
    h = h * jax.lax.rsqrt(jnp.mean(h * h, axis=-1, keepdims=True) + eps)
    return h.astype(x.dtype) * scale.astype(x.dtype)
