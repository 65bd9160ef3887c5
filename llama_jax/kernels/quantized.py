"""Products of activations and quantized weights, in the platform's form.

`Int8`, `Int4` and `Fp8` say what they compute; these functions compute it fast. The weights are
frozen: a gradient flows to the activations, as LoRA needs it, and none to the weights.
"""

from __future__ import annotations

import jax
from jaxtyping import Array

from llama_jax.kernels.forms import by_platform
from llama_jax.weights.fp8 import Fp8
from llama_jax.weights.int4 import Int4
from llama_jax.weights.int8 import Int8
from llama_jax.weights.weight import Weight

QUANTIZED = (Int8, Int4, Fp8)
"""The kinds of weight that have forms of their own."""


def linear(x: Array, w: Weight) -> Array:
    """`x @ w`, of vectors [..., in]."""
    return _product(x.reshape(-1, x.shape[-1]), w).reshape(*x.shape[:-1], w.shape[1])


def linear_transposed(x: Array, w: Weight) -> Array:
    """`x @ w.T`, of vectors [..., out]."""
    return _product_transposed(x.reshape(-1, x.shape[-1]), w).reshape(*x.shape[:-1], w.shape[0])


@jax.custom_vjp
def _product(x: Array, w: Weight) -> Array:
    return by_platform("quantized", x, w)


@jax.custom_vjp
def _product_transposed(x: Array, w: Weight) -> Array:
    return by_platform("quantized_transposed", x, w)


# Derived from the forms, a gradient would keep every decoded block of the weight.
_product.defvjp(lambda x, w: (_product(x, w), w), lambda w, g: (_product_transposed(g, w), None))
_product_transposed.defvjp(
    lambda x, w: (_product_transposed(x, w), w), lambda w, g: (_product(g, w), None)
)
