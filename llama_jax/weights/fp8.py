"""A weight of 8-bit floating-point numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from llama_jax.ops.linear import linear, linear_transposed
from llama_jax.pytrees import register_dataclass
from llama_jax.weights.groups import check_scales
from llama_jax.weights.rounding import rounded_fp8
from llama_jax.weights.weight import Layout, PartAxis, register_weight


@register_weight
@register_dataclass
@dataclasses.dataclass(frozen=True)
class Fp8:
    """A weight [in, out] of float8_e4m3fn numbers, each times its output's `scale`, [out].

    e4m3 has 4 bits of exponent and 3 of mantissa; its largest number is 448. What is held is the
    numbers' `bits`, uint8: of a float8 array XLA on a CPU would widen all to read a slice.
    """

    kind: ClassVar[str] = "fp8"

    bits: Array
    scale: Array
    dtype: np.dtype = dataclasses.field(default=np.dtype("float32"), metadata={"static": True})
    """The activations' dtype."""

    @classmethod
    def of(cls, array: Any) -> Self:
        """An array [in, out] rounded; each output's largest number becomes 448 or -448."""
        values, scale = rounded_fp8(array)
        return cls(values.view(jnp.uint8), scale, np.dtype(array.dtype))

    @classmethod
    def of_values(cls, values: Any, scale: Any, *, dtype: Any = jnp.float32) -> Self:
        """The weight of float8_e4m3fn numbers [in, out] and scales [out], which stay as given.

        ValueError where the shapes do not fit.
        """
        if np.dtype(values.dtype) != jnp.float8_e4m3fn:
            raise ValueError(
                f"values are {np.dtype(values.dtype)}; give them as float8_e4m3fn, whose bits "
                "other formats of 8 bits do not share"
            )
        return cls.from_parts({"bits": values.view(np.uint8), "scale": scale}, {}, np.dtype(dtype))

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.bits.shape)

    @property
    def values(self) -> Array:
        """The numbers before their scales, float8_e4m3fn [in, out]."""
        return jnp.asarray(self.bits).view(jnp.float8_e4m3fn)

    def matmul(self, x: Array) -> Array:
        """`x @ w`; the reference of the faster forms in `kernels/quantized.py`."""
        return linear(x, self.dense())

    def matmul_transposed(self, x: Array) -> Array:
        return linear_transposed(x, self.dense())

    def rows(self, ids: Array) -> Array:
        rows = jnp.asarray(self.bits)[ids].view(jnp.float8_e4m3fn).astype(jnp.float32)
        return (rows * jnp.asarray(self.scale).astype(jnp.float32)).astype(self.dtype)

    def dense(self) -> Array:
        """The weight as a float32 array [in, out]."""
        scale = jnp.asarray(self.scale).astype(jnp.float32)
        return self.values.astype(jnp.float32) * scale

    def parts(self) -> dict[str, Any]:
        return {"bits": self.bits, "scale": self.scale}

    def layout(self) -> Layout:
        return {"bits": (PartAxis(0), PartAxis(1)), "scale": (PartAxis(1),)}

    def constants(self) -> dict[str, Any]:
        return {}

    @classmethod
    def from_parts(
        cls, parts: Mapping[str, Any], constants: Mapping[str, Any], dtype: np.dtype
    ) -> Self:
        bits, scale = parts["bits"], parts["scale"]
        if constants or np.dtype(bits.dtype) != np.uint8:
            raise ValueError(
                f"bits are {np.dtype(bits.dtype)}, and should be uint8; constants="
                f"{dict(constants)} should be none"
            )
        check_scales(cls.kind, tuple(bits.shape), {"scale": scale})
        if len(scale.shape) != 1:
            raise ValueError(f"scale of shape {list(scale.shape)} is not one number an output")
        return cls(bits, scale, np.dtype(dtype))
