"""A weight whose activations a Hadamard matrix turns first, as SpinQuant's down projections need.

SpinQuant (arXiv:2405.16406) rounds the product of a weight and a Hadamard matrix, in which no
number is far larger than the others, and turns the activations when the model runs (its R4).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from llama_jax.ops.hadamard import hadamard
from llama_jax.pytrees import register_dataclass
from llama_jax.weights.weight import Layout, Weight, register_weight, value_within

_INNER = "inner"


@register_weight
@register_dataclass
@dataclasses.dataclass(frozen=True)
class Hadamard:
    """A value of the `Weight` protocol around another: `(x @ H / sqrt(size)) @ inner`."""

    kind = "hadamard"

    inner: Weight
    """The turned weight [in, out], such as an `Int4`."""
    size: int = dataclasses.field(metadata={"static": True})
    """How many inputs H turns, a power of two; a mesh may have added zeros after them."""

    @property
    def shape(self) -> tuple[int, ...]:
        return self.inner.shape

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.inner.dtype)

    def turned(self, x: Array) -> Array:
        """`x @ H / sqrt(size)`, of vectors [..., in]."""
        turned = hadamard(x[..., : self.size])
        added = x.shape[-1] - self.size
        return jnp.pad(turned, [(0, 0)] * (x.ndim - 1) + [(0, added)]) if added else turned

    def matmul(self, x: Array) -> Array:
        return self.inner.matmul(self.turned(x))

    def matmul_transposed(self, x: Array) -> Array:
        return self.turned(self.inner.matmul_transposed(x))  # H is symmetric

    def rows(self, ids: Array) -> Array:
        return self.dense()[ids].astype(self.dtype)

    def dense(self) -> Array:
        """The same weight for activations that are not turned, float32 [in, out]."""
        return self.turned(jnp.asarray(self.inner.dense()).astype(jnp.float32).T).T

    def parts(self) -> dict[str, Any]:
        return {f"{_INNER}_{name}": part for name, part in self.inner.parts().items()}

    def layout(self) -> Layout:
        return {f"{_INNER}_{name}": axes for name, axes in self.inner.layout().items()}

    def constants(self) -> dict[str, Any]:
        inner = {"kind": self.inner.kind, "constants": self.inner.constants()}
        return {"size": self.size, _INNER: inner}

    @classmethod
    def from_parts(
        cls, parts: Mapping[str, Any], constants: Mapping[str, Any], dtype: np.dtype
    ) -> Hadamard:
        size = constants["size"]
        if type(size) is not int or size < 1 or size & (size - 1):
            raise ValueError(f"size={size!r} must be a power of two")
        others = [cls.kind, "lora"]  # an adapter lies around it, not in it
        inner = value_within(_INNER, parts, constants[_INNER], dtype, none_of=others)
        if inner.shape[0] < size:
            raise ValueError(f"size={size} exceeds the {inner.shape[0]} inputs of the weight")
        return cls(inner, size)
