"""A weight of 8-bit integers that multiplies activations of 8 bits."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from llama_jax.ops.linear import linear, linear_transposed
from llama_jax.pytrees import register_dataclass
from llama_jax.weights.rounding import LEAST, rounded_int8
from llama_jax.weights.weight import Layout, PartAxis, register_weight


@register_weight
@register_dataclass
@dataclasses.dataclass(frozen=True)
class Int8Dynamic:
    """A weight [in, out] of int8 `values` [out, in] and scales [out], for rounded activations.

    A product rounds each row of its activations to integers from -127 to 127 and one scale. Sums of
    integers are exact, so a row's result is the same to the bit beside any other rows. The
    gradient ignores the rounding (straight-through). `values` lie by outputs, as a CPU's product of
    integers reads them.
    """

    kind: ClassVar[str] = "int8_dynamic"

    values: Array
    scale: Array
    dtype: np.dtype = dataclasses.field(default=np.dtype("float32"), metadata={"static": True})
    """The dtype of the activations before they are rounded, and of the result."""

    @classmethod
    def of(cls, array: Any) -> Self:
        """An array [in, out] rounded, with a scale for each output."""
        values, scale = rounded_int8(array, None)
        return cls(values.T, scale, np.dtype(array.dtype))

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.values.shape[1], self.values.shape[0])

    def matmul(self, x: Array) -> Array:
        return _product(x, self)

    def matmul_transposed(self, x: Array) -> Array:
        return _product_transposed(x, self)

    def rows(self, ids: Array) -> Array:
        rows = jnp.moveaxis(jnp.asarray(self.values)[:, ids], 0, -1).astype(jnp.float32)
        return (rows * self._scale()).astype(self.dtype)

    def dense(self) -> Array:
        """The weight as a float32 array [in, out]."""
        return jnp.asarray(self.values).astype(jnp.float32).T * self._scale()

    def _scale(self) -> Array:
        return jnp.asarray(self.scale).astype(jnp.float32)

    def parts(self) -> dict[str, Any]:
        return {"values": self.values, "scale": self.scale}

    def layout(self) -> Layout:
        return {"values": (PartAxis(1), PartAxis(0)), "scale": (PartAxis(1),)}

    def constants(self) -> dict[str, Any]:
        return {}

    @classmethod
    def from_parts(
        cls, parts: Mapping[str, Any], constants: Mapping[str, Any], dtype: np.dtype
    ) -> Self:
        values, scale = parts["values"], parts["scale"]
        if constants or np.dtype(values.dtype) != np.int8 or values.shape[:1] != scale.shape:
            raise ValueError(
                f"values of shape {list(values.shape)} and {np.dtype(values.dtype)} and a scale of "
                f"shape {list(scale.shape)} are not int8 [out, in] and [out]; "
                f"constants={dict(constants)} should be none"
            )
        return cls(values, scale, np.dtype(dtype))


@jax.custom_vjp
def _product(x: Array, w: Int8Dynamic) -> Array:
    rows, scale = _rounded_rows(x.reshape(-1, x.shape[-1]).astype(jnp.float32))
    sums = _integer_dot(w.values, rows, over=1)
    out = (sums * scale * w._scale()).astype(x.dtype)
    return out.reshape(*x.shape[:-1], w.shape[1])


@jax.custom_vjp
def _product_transposed(x: Array, w: Int8Dynamic) -> Array:
    scaled = x.reshape(-1, x.shape[-1]).astype(jnp.float32) * w._scale()
    rows, scale = _rounded_rows(scaled)
    out = (_integer_dot(w.values, rows, over=0) * scale).astype(x.dtype)
    return out.reshape(*x.shape[:-1], w.shape[0])


# Of rounding itself the gradient is 0, and what lies before this weight would learn nothing.
_product.defvjp(
    lambda x, w: (_product(x, w), w), lambda w, g: (linear_transposed(g, w.dense()), None)
)
_product_transposed.defvjp(
    lambda x, w: (_product_transposed(x, w), w), lambda w, g: (linear(g, w.dense()), None)
)


def _rounded_rows(x: Array) -> tuple[Array, Array]:
    """Each row as integers from -127 to 127 and a scale: int8 [n, in] and float32 [n, 1]."""
    scale = jnp.maximum(jnp.abs(x).max(axis=1, keepdims=True) / 127, LEAST)
    return jnp.round(x / scale).astype(jnp.int8), scale


def _integer_dot(values: Array, rows: Array, over: int) -> Array:
    """Products of int8 rows [n, k] and a matrix, exact sums: float32 [n, ...].

    One row is padded to two, because XLA on a CPU has no fast product of one. The weight is the
    left operand: the library there repacks the right one for each call.
    """
    pairs = jnp.pad(rows, ((0, 1), (0, 0))) if len(rows) == 1 else rows
    sums = (((over,), (1,)), ((), ()))
    out = jax.lax.dot_general(jnp.asarray(values), pairs, sums, preferred_element_type=jnp.int32)
    return out.T[: len(rows)].astype(jnp.float32)
