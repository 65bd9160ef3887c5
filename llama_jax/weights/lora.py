"""LoRA (arXiv:2106.09685): a weight that stays as it is, and a product of two thin matrices.

    y = x @ base + (x @ a) @ b * scale        a [in, rank], b [rank, out], scale = alpha / rank

The base is an array, or a weight of any other kind, such as an int8 one. A mesh that cuts the
base's inputs cuts those of `a`, and one that cuts its outputs cuts those of `b`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from llama_jax.ops.embedding import embed
from llama_jax.ops.linear import dot
from llama_jax.pytrees import register_dataclass
from llama_jax.weights.weight import Layout, PartAxis, is_value, register_weight, value_within

_BASE = "base"


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Adapter:
    """What training adds to one weight: two matrices whose product, times `scale`, is added."""

    a: Any
    """[in, rank]"""
    b: Any
    """[rank, out]"""
    scale: float = dataclasses.field(metadata={"static": True})

    @property
    def rank(self) -> int:
        return self.b.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of the weight to which it belongs, [in, out]."""
        return self.a.shape[0], self.b.shape[1]

    def axes(self) -> dict[str, tuple[PartAxis, ...]]:
        """How the axes of `a` and `b` follow those of the weight."""
        own = PartAxis(None, size=self.rank)
        return {"a": (PartAxis(0), own), "b": (own, PartAxis(1))}


@register_weight
@register_dataclass
@dataclasses.dataclass(frozen=True)
class Lora:
    """A weight with an adapter: a value of the `Weight` protocol."""

    kind = "lora"

    base: Any
    """The weight that is adapted: an array, or another value."""
    a: Any
    """[in, rank]"""
    b: Any
    """[rank, out]"""
    scale: float = dataclasses.field(metadata={"static": True})

    @classmethod
    def of(cls, base: Any, adapter: Adapter) -> Lora:
        """A weight with an adapter. ValueError where their shapes differ."""
        if tuple(base.shape) != tuple(adapter.shape):
            raise ValueError(
                f"the adapter is of a weight of shape {list(adapter.shape)}, and this one has "
                f"{list(base.shape)}"
            )
        return cls(base, adapter.a, adapter.b, adapter.scale)

    @property
    def adapter(self) -> Adapter:
        """The adapter alone."""
        return Adapter(self.a, self.b, self.scale)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.base.dtype)

    @property
    def dense_part(self) -> str | None:
        """The base is read in the activations' dtype, where it is an array."""
        return None if is_value(self.base) else _BASE

    def matmul(self, x: Array) -> Array:
        base = self.base.matmul(x) if is_value(self.base) else dot(x, self._base_as(x), 0)
        return base + self.added(x)

    def added(self, x: Array) -> Array:
        """`x @ a @ b * scale`: what the adapter adds to the base's product, in the dtype of `x`."""
        return self._scaled(dot(dot(x, self.a.astype(x.dtype), 0), self.b.astype(x.dtype), 0))

    def matmul_transposed(self, x: Array) -> Array:
        base = self.base.matmul_transposed(x) if is_value(self.base) else None
        base = dot(x, self._base_as(x), 1) if base is None else base
        return base + self._scaled(
            dot(dot(x, self.b.astype(x.dtype), 1), self.a.astype(x.dtype), 1)
        )

    def rows(self, ids: Array) -> Array:
        base = self.base.rows(ids) if is_value(self.base) else embed(self.base, ids)
        a = embed(self.a, ids).astype(base.dtype)
        return base + self._scaled(dot(a, self.b.astype(base.dtype), 0))

    def dense(self) -> Array:
        """The base, dequantised, plus the adapter's product: summed in float32, then rounded."""
        base = jnp.asarray(self.base.dense() if is_value(self.base) else self.base)
        a, b = (jnp.asarray(part).astype(jnp.float32) for part in (self.a, self.b))
        return (base.astype(jnp.float32) + self._scaled(dot(a, b, 0))).astype(self.dtype)

    def parts(self) -> dict[str, Any]:
        base = {_BASE: self.base}
        if is_value(self.base):
            base = {f"{_BASE}_{name}": part for name, part in self.base.parts().items()}
        return {**base, "a": self.a, "b": self.b}

    def layout(self) -> Layout:
        base: dict[str, tuple[PartAxis, ...]] = {_BASE: (PartAxis(0), PartAxis(1))}
        if is_value(self.base):
            base = {f"{_BASE}_{name}": axes for name, axes in self.base.layout().items()}
        return {**base, **self.adapter.axes()}

    def constants(self) -> dict[str, Any]:
        said: dict[str, Any] = {"scale": self.scale}
        if is_value(self.base):
            said[_BASE] = {"kind": self.base.kind, "constants": self.base.constants()}
        return said

    @classmethod
    def from_parts(
        cls, parts: Mapping[str, Any], constants: Mapping[str, Any], dtype: np.dtype
    ) -> Lora:
        scale = constants["scale"]
        if (
            isinstance(scale, bool)
            or not isinstance(scale, int | float)
            or not math.isfinite(scale)
        ):
            raise ValueError(f"scale={scale!r} must be a finite number")
        base, a, b = _base(parts, constants, dtype), parts["a"], parts["b"]
        if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[1] != b.shape[0]:
            raise ValueError(
                f"a has shape {list(a.shape)} and b {list(b.shape)}; they must be [in, rank] and "
                "[rank, out]"
            )
        return cls(base, a, b, float(scale))

    def _base_as(self, x: Array) -> Array:
        return self.base.astype(x.dtype)

    def _scaled(self, x: Array) -> Array:
        return x * jnp.asarray(self.scale, x.dtype)


def scale_of(rank: int, alpha: float, rslora: bool) -> float:
    """`alpha / rank`; rank-stabilised (arXiv:2312.03732), `alpha / sqrt(rank)`."""
    return alpha / math.sqrt(rank) if rslora else alpha / rank


def _base(parts: Mapping[str, Any], constants: Mapping[str, Any], dtype: np.dtype) -> Any:
    """The base of these parts of a `Lora`, for activations of `dtype`."""
    if _BASE in parts:
        return _in_dtype(parts[_BASE], dtype)
    return value_within(_BASE, parts, constants[_BASE], dtype, none_of=[Lora.kind])


def _in_dtype(base: Any, dtype: Any) -> Any:
    """An array, or its shape, in this dtype. What lies in a file stays as it is."""
    if base.dtype == dtype:
        return base
    if isinstance(base, jax.ShapeDtypeStruct):
        return base.update(dtype=dtype)
    return base.astype(dtype) if hasattr(base, "astype") else base
