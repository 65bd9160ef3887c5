"""Products of activations and quantized weights, in the platform's form.

`Int8`, `Int4` and `Fp8` say what they compute; these functions compute it fast. The weights are
frozen: a gradient flows to the activations, as LoRA needs it, and none to the weights.
"""

from __future__ import annotations

from typing import Any

import jax
from jaxtyping import Array

from llama_jax.kernels import quantized_cpu, quantized_gpu
from llama_jax.weights.fp8 import Fp8
from llama_jax.weights.int4 import Int4
from llama_jax.weights.int8 import Int8
from llama_jax.weights.weight import Weight

KINDS = (Int8, Int4, Fp8)
"""The weights that have forms of their own."""

FORMS: dict[str, dict[str, Any]] = {
    "product": {"cpu": quantized_cpu.product, "default": quantized_gpu.product},
    "product_transposed": {
        "cpu": quantized_cpu.product_transposed,
        "default": quantized_gpu.product_transposed,
    },
}
"""The implementation of a function on each platform."""


def linear(x: Array, w: Weight) -> Array:
    """`x @ w`, of vectors [..., in]."""
    return _product(x.reshape(-1, x.shape[-1]), w).reshape(*x.shape[:-1], w.shape[1])


def linear_transposed(x: Array, w: Weight) -> Array:
    """`x @ w.T`, of vectors [..., out]."""
    return _product_transposed(x.reshape(-1, x.shape[-1]), w).reshape(*x.shape[:-1], w.shape[0])


@jax.custom_vjp
def _product(x: Array, w: Weight) -> Array:
    return jax.lax.platform_dependent(x, w, **FORMS["product"])


@jax.custom_vjp
def _product_transposed(x: Array, w: Weight) -> Array:
    return jax.lax.platform_dependent(x, w, **FORMS["product_transposed"])


# Derived from the forms, a gradient would keep every decoded block of the weight.
_product.defvjp(lambda x, w: (_product(x, w), w), lambda w, g: (_product_transposed(g, w), None))
_product_transposed.defvjp(
    lambda x, w: (_product_transposed(x, w), w), lambda w, g: (_product(g, w), None)
)
