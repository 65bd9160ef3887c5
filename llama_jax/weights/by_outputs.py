"""A weight that lies by its outputs, [out, in]: a CPU multiplies a few rows with it fastest."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import jax
import numpy as np
from jaxtyping import Array

from llama_jax.ops.linear import linear, linear_transposed
from llama_jax.pytrees import register_dataclass
from llama_jax.weights.params import Params, nested, weight_at
from llama_jax.weights.table import EMBEDDING, weight_table
from llama_jax.weights.weight import Layout, PartAxis, is_value


@register_dataclass
@dataclasses.dataclass(frozen=True)
class ByOutputs:
    """A weight [in, out] as the array `values` [out, in], of the same numbers.

    It is for a model at work, and no kind of a checkpoint's.
    """

    kind: ClassVar[str] = "by_outputs"

    values: Array

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.values.shape[1], self.values.shape[0])

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.values.dtype)

    def matmul(self, x: Array) -> Array:
        """`x @ w`; the reference of the faster form in `kernels/cpu.py`."""
        return linear_transposed(x, self.values)

    def matmul_transposed(self, x: Array) -> Array:
        return linear(x, self.values)

    def rows(self, ids: Array) -> Array:
        return self.dense()[ids]

    def dense(self) -> Array:
        """The weight as an array [in, out]."""
        return self.values.T

    def parts(self) -> dict[str, Any]:
        return {"values": self.values}

    def layout(self) -> Layout:
        return {"values": (PartAxis(1), PartAxis(0))}

    def constants(self) -> dict[str, Any]:
        return {}

    @classmethod
    def from_parts(
        cls, parts: Mapping[str, Any], constants: Mapping[str, Any], dtype: np.dtype
    ) -> Self:
        return cls(parts["values"])


def by_outputs(params: Params) -> Params:
    """The same model, each matrix but the embedding by its outputs.

    It takes `params` over: each matrix is deleted once it is turned, so memory holds one more at
    most. Weights that are quantized or have adapters stay as they are. Weights that are shapes
    (`checkpoint.shapes`) become the shapes of the turned.
    """
    weights = {}
    for path in weight_table(params.config):
        weight = weight_at(params.weights, path)
        if path != EMBEDDING and not is_value(weight) and weight.ndim == 2:
            weight = ByOutputs(_turned(weight))
        weights[path] = weight
    return params.replace(weights=nested(weights))


def _turned(matrix: Any) -> Any:
    if isinstance(matrix, jax.ShapeDtypeStruct):
        return matrix.update(shape=matrix.shape[::-1])
    turned = jax.block_until_ready(_turn(matrix))
    matrix.delete()
    return turned


_turn = jax.jit(lambda matrix: matrix.T)
