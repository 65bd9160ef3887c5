"""Adapters beside a checkpoint: opened with it, and merged into its weights block by block."""

from __future__ import annotations

import dataclasses
import math
from os import PathLike
from typing import Any

import numpy as np

from llama_jax.checkpoint.blocks import ReadByPart, Stored
from llama_jax.checkpoint.native.values import StoredValue
from llama_jax.checkpoint.peft import open_peft
from llama_jax.checkpoint.placing import Index
from llama_jax.checkpoint.source import Source
from llama_jax.tokenizer.folder import given_path
from llama_jax.tokenizer.foreign import in_short
from llama_jax.weights.lora import Adapter, Lora
from llama_jax.weights.table import WeightPath
from llama_jax.weights.weight import is_value


@in_short()
def with_adapter(source: Source, adapter: str | PathLike[str] | None) -> Source:
    """A checkpoint with the adapter of a folder of peft's, whose matrices are not read yet.

    ValueError where the adapter is of another model, or the checkpoint has adapters already.
    """
    if adapter is None:
        return source
    check_no_adapters(bool(adapters_in(source)), source.path)
    tensors: dict[WeightPath, Any] = dict(source.tensors)
    found = open_peft(given_path(adapter), source.config, source.path)
    for path, one in found.items():
        base = tensors[path]
        lora = Lora(base, one.a, one.b, one.scale)
        dtype = np.dtype(base.dtype)
        tensors[path] = StoredValue(Lora.kind, dtype, lora.constants(), lora.parts())
    return dataclasses.replace(source, tensors=tensors)


def check_no_adapters(there: bool, path: str | PathLike[str]) -> None:
    """ValueError where a checkpoint that is to get an adapter has some."""
    if there:
        raise ValueError(
            f"{path} has adapters already; merge them first: llama-jax merge {path} DESTINATION"
        )


def adapters_in(source: Source) -> dict[WeightPath, Adapter]:
    """The adapters of a checkpoint, none of their matrices read."""
    return {
        path: Adapter(tensor.stored["a"], tensor.stored["b"], tensor.fields["scale"])
        for path, tensor in source.tensors.items()
        if isinstance(tensor, StoredValue) and tensor.kind == Lora.kind
    }


@dataclasses.dataclass
class Rounding:
    """What the dtype of the merged weights lost of what the adapters add, once they are read."""

    added: dict[str, float] = dataclasses.field(default_factory=dict)
    """By weight, the sum of squares of what its adapter adds."""
    lost: dict[str, float] = dataclasses.field(default_factory=dict)
    """By weight, the sum of squares of the rounding errors."""

    @property
    def part(self) -> float:
        """The root mean square of the errors, as a part of that of what is added."""
        return _ratio(sum(self.lost.values()), sum(self.added.values()))

    @property
    def worst(self) -> tuple[str, float]:
        """The weight that lost the largest part, and that part."""
        parts = {name: _ratio(self.lost[name], self.added[name]) for name in self.added}
        return max(parts.items(), key=lambda one: one[1])

    def __bool__(self) -> bool:
        return bool(self.added)

    def __str__(self) -> str:
        name, part = self.worst
        return (
            f"the errors of rounding are {self.part:.2g} times what the adapters add (root mean "
            f"square; {part:.2g} in {name})"
        )


def merged(source: Source, dtype: np.dtype | None) -> tuple[Source, Rounding]:
    """A checkpoint whose adapters are added into its weights as these are read.

    An adapted weight that is quantized is dequantised. The sum is float64, rounded once: to
    `dtype`, or to the weight's own. The rounding errors are known once the weights are read.
    """
    rounding, tensors = Rounding(), dict(source.tensors)
    for path in adapters_in(source):
        stored: Any = source.tensors[path]
        lora = stored.whole()
        base = lora.base
        if is_value(base):
            base = StoredValue(base.kind, stored.dtype, base.constants(), base.parts())
        tensors[path] = MergedTensor(
            ".".join(path), base, lora.a, lora.b, lora.scale, dtype or stored.dtype, rounding
        )
    return dataclasses.replace(source, tensors=tensors), rounding


@dataclasses.dataclass(frozen=True)
class MergedTensor(ReadByPart):
    """A weight and its adapter, read as one array: a `Stored`."""

    name: str
    base: Stored
    a: Stored
    b: Stored
    scale: float
    dtype: np.dtype
    rounding: Rounding

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    def read(self, index: Index, out: np.ndarray) -> None:
        """Reads the part under `index`; memory: four times that part in float64."""
        rows, columns = index
        a = self.a[rows, :].astype(np.float64)
        added = a @ self.b[:, columns].astype(np.float64) * self.scale
        exact = self.base[index].astype(np.float64) + added
        rounded = exact.astype(self.dtype)
        lost = exact - rounded.astype(np.float64)
        for sums, values in ((self.rounding.added, added), (self.rounding.lost, lost)):
            sums[self.name] = sums.get(self.name, 0.0) + float(np.vdot(values, values))
        out[...] = rounded


def _ratio(lost: float, added: float) -> float:
    return math.sqrt(lost / added) if added else 0.0
