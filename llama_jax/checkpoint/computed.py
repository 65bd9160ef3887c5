"""Weights of quantized files, whose parts or numbers are computed when they are read."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from llama_jax.checkpoint.blocks import ReadByPart
from llama_jax.checkpoint.placing import Index
from llama_jax.checkpoint.quantizing import RoundedTensor
from llama_jax.weights.int4 import GROUP, WORDS
from llama_jax.weights.weight import KINDS

Parts = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class ComputedTensor(RoundedTensor, ReadByPart):  # type: ignore[misc]
    """A value; read by part it is the array that it stands for. Memory: the whole weight."""

    stored_as: str
    """What its format is called."""

    def read(self, index: Index, out: np.ndarray) -> None:
        made = KINDS[self.kind].from_parts(self.value(), {}, self.dtype)
        out[...] = np.asarray(made.dense())[index]


@dataclasses.dataclass(frozen=True)
class DenseTensor(ReadByPart):
    """An array [in, out] in float32. Memory: the whole weight."""

    shape: tuple[int, ...]
    array: Callable[[], np.ndarray]
    stored_as: str

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.float32)

    def read(self, index: Index, out: np.ndarray) -> None:
        out[...] = self.array()[index]


def declared(
    kind: str, shape: tuple[int, ...], group: int | None, scale: Any, minimum: Any = None
) -> Any:
    """A value [in, out] with shapes in place of arrays.

    `scale` and `minimum` are the dtypes of those parts; `group` is None for one an output.
    """
    inputs, outputs = shape
    scales = (outputs,) if group is None else (inputs // group, outputs)
    parts = {"scale": jax.ShapeDtypeStruct(scales, scale)}
    if minimum is not None:
        parts["minimum"] = jax.ShapeDtypeStruct(scales, minimum)
    if kind == "int4":
        parts["words"] = jax.ShapeDtypeStruct((WORDS, inputs // GROUP, outputs), np.int32)
    elif kind == "int8":
        parts["values"] = jax.ShapeDtypeStruct(shape, np.int8)
    else:
        parts["bits"] = jax.ShapeDtypeStruct(shape, np.uint8)
    return KINDS[kind].from_parts(parts, {}, np.dtype(np.float32))
