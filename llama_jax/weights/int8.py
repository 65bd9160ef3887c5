"""A weight of 8-bit integers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from llama_jax.ops.linear import linear, linear_transposed
from llama_jax.pytrees import register_dataclass
from llama_jax.weights.groups import check_scales, group_of, scale_axes, scales_of_rows, spread
from llama_jax.weights.rounding import rounded_int8
from llama_jax.weights.weight import Layout, PartAxis, register_weight


@register_weight
@register_dataclass
@dataclasses.dataclass(frozen=True)
class Int8:
    """A weight [in, out] of int8 `values`: each number is `values * scale + minimum`.

    Scales are one for each output, [out], or one for each group of neighbouring inputs of each
    output, [in / group, out]; minima, where there are any, are of the same shape. `of` rounds an
    array; `of_integers` takes numbers that are integers already, and rounds nothing.
    """

    kind: ClassVar[str] = "int8"

    values: Array
    scale: Array
    minimum: Array | None = None
    dtype: np.dtype = dataclasses.field(default=np.dtype("float32"), metadata={"static": True})
    """The activations' dtype."""

    @classmethod
    def of(cls, array: Any, group: int | None = None) -> Self:
        """An array [in, out] rounded to integers from -127 to 127 and scales.

        `group` is how many inputs share a scale, which is bfloat16 then; None gives each output
        one in float32. ValueError where it does not divide the inputs.
        """
        values, scale = rounded_int8(array, group)
        return cls(values, scale, None, np.dtype(array.dtype))

    @classmethod
    def of_integers(
        cls, values: Any, scale: Any, minimum: Any = None, *, dtype: Any = jnp.float32
    ) -> Self:
        """The weight of integers [in, out] from -128 to 127 and their scales, which stay as given.

        ValueError where the shapes do not fit.
        """
        if np.dtype(values.dtype) != np.int8:
            raise ValueError(f"values are {np.dtype(values.dtype)}; give them as int8")
        scales = {"scale": scale} if minimum is None else {"scale": scale, "minimum": minimum}
        check_scales(cls.kind, tuple(values.shape), scales)
        return cls(values, scale, minimum, np.dtype(dtype))

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.values.shape)

    @property
    def group(self) -> int | None:
        """How many inputs share a scale; None where all of an output's do."""
        return group_of(self.scale, self.shape[0])

    def matmul(self, x: Array) -> Array:
        """`x @ w`; the reference of the faster forms in `kernels/quantized.py`."""
        return linear(x, self.dense())

    def matmul_transposed(self, x: Array) -> Array:
        return linear_transposed(x, self.dense())

    def rows(self, ids: Array) -> Array:
        scale = scales_of_rows(self.scale, ids, self.shape[0])
        rows = jnp.asarray(self.values)[ids].astype(jnp.float32) * scale
        if self.minimum is not None:
            rows = rows + scales_of_rows(self.minimum, ids, self.shape[0])
        return rows.astype(self.dtype)

    def dense(self) -> Array:
        """The weight as a float32 array [in, out]."""
        array = jnp.asarray(self.values).astype(jnp.float32) * spread(self.scale, self.shape[0])
        return array if self.minimum is None else array + spread(self.minimum, self.shape[0])

    def parts(self) -> dict[str, Any]:
        parts = {"values": self.values, "scale": self.scale}
        return parts if self.minimum is None else parts | {"minimum": self.minimum}

    def layout(self) -> Layout:
        axes = {name: scale_axes(self.scale, self.shape[0]) for name in self.parts()}
        return axes | {"values": (PartAxis(0), PartAxis(1))}

    def constants(self) -> dict[str, Any]:
        return {}

    @classmethod
    def from_parts(
        cls, parts: Mapping[str, Any], constants: Mapping[str, Any], dtype: np.dtype
    ) -> Self:
        return cls.of_integers(
            parts["values"], parts["scale"], parts.get("minimum"), dtype=dtype, **constants
        )
