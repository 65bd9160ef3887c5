"""A checkpoint's weights, rounded to 8 or 4 bits as they are read."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from llama_jax.checkpoint.blocks import ReadByPart, Stored
from llama_jax.checkpoint.placing import Index
from llama_jax.weights.quantize import Rule, kind_of, rounded_weight
from llama_jax.weights.table import WeightPath
from llama_jax.weights.weight import KINDS, Layout, is_value

AS_ARRAYS = "none"
"""In place of a kind: what is stored in 8 or 4 bits becomes arrays."""


def rounded_tensors(
    tensors: Mapping[WeightPath, Stored], rule: Rule, dtype: np.dtype | None
) -> dict[WeightPath, Any]:
    """The same weights as a rule of `quantize` says, each rounded when it is read.

    `dtype` is the activations', by default each weight's own. Memory: one weight and what it
    becomes.
    """

    @functools.lru_cache(maxsize=1)  # the parts of a weight are read one after the other
    def value(path: WeightPath) -> dict[str, np.ndarray]:
        made = rounded_weight(tensors[path][...], str(kinds[path]), path)
        return {name: np.asarray(part) for name, part in made.parts().items()}

    kinds = {path: kind_of(rule, path, tuple(tensor.shape)) for path, tensor in tensors.items()}
    found: dict[WeightPath, Any] = {}
    for path, tensor in tensors.items():
        kind = kinds[path]
        shapes = kind and rounded_shape(tensor, kind, path, dtype)
        read = functools.partial(value, path)
        found[path] = RoundedTensor(shapes, read) if shapes else tensor
    return found


def rounded_shape(tensor: Any, kind: str, path: WeightPath, dtype: Any = None) -> Any:
    """What a stored weight becomes, with shapes in place of arrays."""
    array = jax.ShapeDtypeStruct(tuple(tensor.shape), tensor.dtype)
    return rounded_weight(tensor if hasattr(type(tensor), "parts") else array, kind, path, dtype)


def as_arrays(tensors: Mapping[WeightPath, Any]) -> dict[WeightPath, Stored]:
    """The same weights, each read as the array that it stands for."""
    return {path: _Dense(one) if is_value(one) else one for path, one in tensors.items()}


@dataclasses.dataclass(frozen=True)
class _Dense(ReadByPart):
    """A weight that is no array, read as one."""

    value: Any

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.value.shape)

    @property
    def dtype(self) -> np.dtype:
        return self.value.dtype

    def read(self, index: Index, out: np.ndarray) -> None:
        self.value.read(index, out)


def value_shape(tensor: Any, dtype: np.dtype) -> Any:
    """What a stored weight that is no array will be, with shapes in place of arrays."""
    parts = {
        name: jax.ShapeDtypeStruct(tuple(part.shape), part.dtype)
        for name, part in tensor.parts().items()
    }
    return KINDS[tensor.kind].from_parts(parts, tensor.constants(), dtype)


@dataclasses.dataclass(frozen=True)
class RoundedTensor:
    """A weight that is no array, whose parts are computed when they are read."""

    shapes: Any
    """The weight, with shapes in place of arrays."""
    value: Callable[[], Mapping[str, np.ndarray]]

    @property
    def kind(self) -> str:
        return self.shapes.kind

    @property
    def shape(self) -> tuple[int, ...]:
        return self.shapes.shape

    @property
    def dtype(self) -> np.dtype:
        return self.shapes.dtype

    def constants(self) -> dict[str, Any]:
        return self.shapes.constants()

    def layout(self) -> Layout:
        return self.shapes.layout()

    def parts(self) -> dict[str, ComputedPart]:
        return {
            name: ComputedPart(part.shape, np.dtype(part.dtype), name, self.value)
            for name, part in self.shapes.parts().items()
        }


@dataclasses.dataclass(frozen=True)
class ComputedPart(ReadByPart):
    """One of the arrays that a function computes together, by its name among them."""

    shape: tuple[int, ...]
    dtype: np.dtype
    name: str
    value: Callable[[], Mapping[str, np.ndarray]]

    def read(self, index: Index, out: np.ndarray) -> None:
        out[...] = self.value()[self.name][index]
