"""Weights that are no arrays, as a native checkpoint holds them: an array for each part.

`layers_0.attention.wq` of kind "int8" lies as `layers_0.attention.wq.values` and `...wq.scale`, and
`checkpoint.json` says its kind, its dtype and its constants.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, Sharding

from llama_jax.checkpoint.blocks import ReadByPart, Stored, Trimmed
from llama_jax.checkpoint.dtypes import parse_dtype
from llama_jax.checkpoint.files.json_file import shown
from llama_jax.checkpoint.placing import Index
from llama_jax.weights import fp8, hadamard, int4, int8, int8_dynamic  # noqa: F401  they register
from llama_jax.weights.table import WeightPath
from llama_jax.weights.weight import (
    ARRAY,
    KINDS,
    Layout,
    check_groups,
    is_value,
    layout_of,
    part_shape,
    part_spec,
    parts_of,
)


class Record(NamedTuple):
    """What `checkpoint.json` says of a weight that is no array."""

    kind: str
    dtype: str
    constants: dict[str, Any]


Records = Mapping[WeightPath, Record]


@dataclasses.dataclass(frozen=True)
class StoredValue(ReadByPart):
    """A weight that is no array, in a checkpoint; read as the array that it stands for."""

    kind: str
    dtype: np.dtype
    fields: dict[str, Any]
    stored: dict[str, Stored]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.whole().shape

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.stored.values())

    def constants(self) -> dict[str, Any]:
        return self.fields

    def parts(self) -> dict[str, Stored]:
        return self.stored

    def layout(self) -> Layout:
        return self.whole().layout()

    def read(self, index: Index, out: np.ndarray) -> None:
        """Reads the part under `index`; memory: the whole weight."""
        dense = self._made({name: part[...] for name, part in self.stored.items()}).dense()
        out[...] = np.asarray(dense)[index]

    def whole(self) -> Any:
        """The weight, with what is stored in place of its arrays."""
        return self._made(self.stored)

    def _made(self, parts: Mapping[str, Any]) -> Any:
        return KINDS[self.kind].from_parts(parts, self.fields, self.dtype)


def parts_to_store(weight: Any, shape: tuple[int, ...]) -> dict[str, Any]:
    """A weight's parts by name, without the zeros that a mesh may have added to them."""
    wanted = {name: part_shape(axes, shape) for name, axes in layout_of(weight).items()}
    return {
        name: part if tuple(part.shape) == wanted[name] else Trimmed(part, wanted[name])
        for name, part in parts_of(weight).items()
    }


def record_of(weight: Any, dtype: np.dtype | None) -> Record | None:
    """What is to be said of a weight beside its parts; nothing of an array."""
    if not is_value(weight):
        return None
    return Record(weight.kind, (dtype or np.dtype(weight.dtype)).name, weight.constants())


def part_path(path: WeightPath, part: str) -> WeightPath:
    """Where a weight's part lies."""
    return path if part == ARRAY else (*path, part)


def made(record: Record, parts: Mapping[str, Any], path: WeightPath, dtype: Any = None) -> Any:
    """The weight of these parts: arrays, or shapes. ValueError where they are none of its kind."""
    name = ".".join(path)
    if not isinstance(record.kind, str) or record.kind not in KINDS:
        known = ", ".join(sorted(KINDS)) or "none"
        raise ValueError(
            f"{name} is a weight of kind {shown(record.kind)}, and this program knows {known}; "
            "import what defines it before you load the checkpoint"
        )
    try:
        wanted = parse_dtype(record.dtype) if dtype is None else dtype
        return KINDS[record.kind].from_parts(parts, record.constants, wanted)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{name} is no whole weight of kind {record.kind}: {error}") from error


def check_parts(weight: Any, path: WeightPath) -> None:
    """ValueError where a part does not have the shape that the weight's other parts say."""
    parts, name = parts_of(weight), ".".join(path)
    for part, axes in layout_of(weight).items():
        found, wanted = tuple(parts[part].shape), part_shape(axes, tuple(weight.shape))
        if found != wanted:
            raise ValueError(
                f"{name}.{part} has shape {found}, and its weight's other parts say {wanted}; "
                "write the checkpoint again"
            )


def part_shardings(
    weight: Any, shape: tuple[int, ...], sharding: Sharding, path: WeightPath
) -> Iterator[tuple[str, Sharding]]:
    """How each part of a weight is cut where the weight is cut so."""
    if not is_value(weight):
        yield ARRAY, sharding
        return
    check_groups(".".join(path), weight, shape, sharding)
    for name, axes in layout_of(weight).items():
        if isinstance(sharding, NamedSharding):
            yield name, NamedSharding(sharding.mesh, part_spec(axes, sharding.spec))
        else:
            yield name, sharding


def shapes_of(parts: Mapping[WeightPath, Any], path: WeightPath) -> dict[str, jax.ShapeDtypeStruct]:
    """The parts of one weight among all that are stored, by name, as shapes."""
    return {
        found[len(path)] if len(found) > len(path) else ARRAY: jax.ShapeDtypeStruct(
            part.shape, part.dtype
        )
        for found, part in parts.items()
        if found[: len(path)] == path
    }
