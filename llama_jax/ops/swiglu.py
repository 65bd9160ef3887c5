"""The gated activation of the feed-forward layer."""

from __future__ import annotations

import jax
from jaxtyping import Array, Float


def swiglu(
    gate: Float[Array, "*batch hidden"], up: Float[Array, "*batch hidden"]
) -> Float[Array, "*batch hidden"]:
    """`silu(gate) * up` (arXiv:2002.05202), where gate is `x @ w1` and up is `x @ w3`."""
    return jax.nn.silu(gate) * up
