"""Products of activations and quantized weights, in the platform's form.

`Int8`, `Int4` and `Fp8` say what they compute; these functions compute it fast. The weights are
frozen: a gradient flows to the activations, as LoRA needs it, and none to the weights.
"""

from __future__ import annotations

from typing import Any

import jax
from jaxtyping import Array

from llama_jax.kernels.forms import by_platform
from llama_jax.ops.swiglu import swiglu
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


@jax.jit  # traced and lowered once a shape, not once a layer
def feed_forward(x: Array, w1: Weight, w3: Weight, w2: Weight) -> Array:
    """`swiglu(x @ w1, x @ w3) @ w2`, of vectors [..., dim]."""
    return _feed_forward(x.reshape(-1, x.shape[-1]), w1, w3, w2).reshape(*x.shape[:-1], -1)


@jax.custom_vjp
def _product(x: Array, w: Weight) -> Array:
    return by_platform("quantized", x, w)


@jax.custom_vjp
def _product_transposed(x: Array, w: Weight) -> Array:
    return by_platform("quantized_transposed", x, w)


@jax.custom_vjp
def _feed_forward(x: Array, w1: Weight, w3: Weight, w2: Weight) -> Array:
    return by_platform("quantized_feed_forward", x, w1, w3, w2)


def _in_three_products(x: Array, *weights: Weight) -> tuple[Array, Any]:
    """The same and its gradient, which keeps what the products give."""

    def products(x: Array) -> Array:
        w1, w3, w2 = weights
        return _product(swiglu(_product(x, w1), _product(x, w3)), w2)

    return jax.vjp(products, x)


# Derived from the forms, a gradient would keep every decoded block of the weight.
_product.defvjp(lambda x, w: (_product(x, w), w), lambda w, g: (_product_transposed(g, w), None))
_product_transposed.defvjp(
    lambda x, w: (_product_transposed(x, w), w), lambda w, g: (_product(g, w), None)
)
_feed_forward.defvjp(_in_three_products, lambda gradient, g: (*gradient(g), None, None, None))
