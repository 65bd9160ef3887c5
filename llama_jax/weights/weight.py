"""The `Weight` protocol. A weight is an array, or an object with a `matmul`: an int8 matrix, say.

Such an object is called a value. It is made of arrays, its parts. `layout` maps each axis of a part
to an axis of the weight:

    Scaled: an int8 array [in, out] and a float32 scale [out], for a weight of shape [in, out]
    parts()   {"values": int8[in, out], "scale": float32[out]}
    layout()  {"values": (PartAxis(0), PartAxis(1)), "scale": (PartAxis(1),)}

So a mesh that shards the weight's outputs shards `scale` with them. What else a program does with
a weight is not a member of the protocol. It is one function, for arrays and for values of any kind:

    put on a mesh       sharding.arrays.put_weight        asks for parts and layout
    gather over fsdp    sharding.arrays.gather_fsdp       parts and layout
    bytes               stored_bytes                      parts and layout
    save                checkpoint.native.values          kind, parts, layout and constants
    load                checkpoint.native.values          from_parts

As members, each would be written once in every kind, and once more for arrays.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol, Self, TypeGuard, TypeVar

import numpy as np
from jax.sharding import NamedSharding, Sharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

ARRAY = ""
"""The name of the one part of a weight that is an array."""


class PartAxis(NamedTuple):
    """The axis of the weight that an axis of a part follows.

    An [in, out] weight with a scale for each group of 32 inputs: the scale is [in / 32, out], and
    its axes are (PartAxis(0, per=32), PartAxis(1)). The first matrix of an adapter of rank 8 is
    [in, 8], and its axes are (PartAxis(0), PartAxis(None, size=8)).
    """

    of: int | None
    """The weight's axis; None for an axis that the part alone has, which no mesh cuts."""
    per: int = 1
    """How many consecutive entries of that axis share one entry of the part."""
    size: int = 0
    """The length of an axis that the part alone has."""


Layout = Mapping[str, tuple[PartAxis, ...]]
Kind = TypeVar("Kind", bound=type)


class Weight(Protocol):
    """A weight that is no array. A pytree whose leaves are its parts.

    A kind may name one part as its `dense_part`, as `Lora` does: `load` reads that part in the
    dtype asked for, and every other part in its own.
    """

    kind: ClassVar[str]
    """The name of this kind in a checkpoint."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The logical shape: [in, out], or [vocab, dim] for an embedding."""
        ...

    @property
    def dtype(self) -> np.dtype:
        """The logical dtype. An embedding's is also the activations' dtype."""
        ...

    def matmul(self, x: Array) -> Array:
        """`x @ w`, for an [in, out] weight, in the dtype of `x`."""
        ...

    def matmul_transposed(self, x: Array) -> Array:
        """`x @ w.T`, for a tied output, whose weight is the embedding [vocab, dim]."""
        ...

    def rows(self, ids: Array) -> Array:
        """The rows of an embedding with these ids, in `dtype`."""
        ...

    def dense(self) -> Array:
        """The weight as an array, for export and comparison."""
        ...

    def parts(self) -> dict[str, Any]:
        """The arrays that it is made of, by name. Names are identifiers."""
        ...

    def layout(self) -> Layout:
        """How each part's axes follow the weight's."""
        ...

    def constants(self) -> dict[str, Any]:
        """JSON values that `from_parts` needs in addition to the parts."""
        ...

    @classmethod
    def from_parts(
        cls, parts: Mapping[str, Any], constants: Mapping[str, Any], dtype: np.dtype
    ) -> Self:
        """The weight made of these parts, for activations of `dtype`."""
        ...


KINDS: dict[str, type[Weight]] = {}
"""Every kind of weight that a checkpoint may hold, by its name there."""


def register_weight(kind: Kind) -> Kind:
    """Class decorator: lets checkpoints hold a kind of weight."""
    KINDS[kind.kind] = kind  # type: ignore[attr-defined]
    return kind


def value_within(
    name: str,
    parts: Mapping[str, Any],
    said: Mapping[str, Any],
    dtype: np.dtype,
    *,
    none_of: Collection[str],
) -> Weight:
    """The value that lies in another: its parts are under `name`_, its kind and constants `said`.

    ValueError where the kind is unknown, or is one that this place does not hold. A kind that holds
    itself would nest as deep as a stranger's file says.
    """
    kind = said["kind"]
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(
            f"its {name} is a weight of kind {kind!r}, which this program does not know; import "
            "what defines it first"
        )
    if kind in none_of:
        raise ValueError(f"its {name} is of kind {kind!r}, which does not lie in such a weight")
    prefix = f"{name}_"
    own = {key.removeprefix(prefix): part for key, part in parts.items() if key.startswith(prefix)}
    return KINDS[kind].from_parts(own, said["constants"], dtype)


def is_value(weight: Any) -> TypeGuard[Weight]:
    """Whether a weight is made of parts, as the `Weight` protocol says, and no array."""
    return hasattr(type(weight), "parts")


def parts_of(weight: Any) -> dict[str, Any]:
    """The arrays that a weight is made of; an array is made of itself."""
    return weight.parts() if is_value(weight) else {ARRAY: weight}


def layout_of(weight: Any) -> Layout:
    """How each part's axes follow the weight's."""
    if is_value(weight):
        return weight.layout()
    return {ARRAY: tuple(PartAxis(axis) for axis in range(len(weight.shape)))}


def map_parts(weight: Any, f: Callable[[Any, tuple[PartAxis, ...]], Any]) -> Any:
    """The weight with `f(part, axes)` in place of each part."""
    layout = layout_of(weight)
    parts = {name: f(part, layout[name]) for name, part in parts_of(weight).items()}
    if not is_value(weight):
        return parts[ARRAY]
    return type(weight).from_parts(parts, weight.constants(), weight.dtype)


def part_shape(axes: tuple[PartAxis, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a part of a weight of this shape."""
    return tuple(
        axis.size if axis.of is None else math.ceil(shape[axis.of] / axis.per) for axis in axes
    )


def part_spec(axes: tuple[PartAxis, ...], spec: P) -> P:
    """The part's PartitionSpec, given the weight's."""
    return P(*(_cut_of(axis, tuple(spec)) for axis in axes))


def read_dtype(weight: Any, part: str, dtype: np.dtype | None) -> np.dtype:
    """The dtype of a part of a stored weight, read for activations of `dtype`.

    A value's parts keep their own, except its `dense_part`, where it has one.
    """
    follows = part == (getattr(weight, "dense_part", None) if is_value(weight) else ARRAY)
    own = np.dtype(parts_of(weight)[part].dtype)
    return dtype if follows and dtype is not None else own


def stored_bytes(weight: Any, shape: tuple[int, ...]) -> int:
    """Bytes of the parts of a weight of this logical shape, without a mesh's padding."""
    layout = layout_of(weight)
    return sum(
        math.prod(part_shape(layout[name], shape)) * np.dtype(part.dtype).itemsize
        for name, part in parts_of(weight).items()
    )


def padded_shape(shape: tuple[int, ...], sharding: Sharding) -> tuple[int, ...]:
    """`shape`, each axis rounded up to a multiple of its number of shards."""
    if not isinstance(sharding, NamedSharding):
        return shape
    cuts = axis_cuts(sharding)
    cuts += [1] * (len(shape) - len(cuts))
    return tuple(math.ceil(n / cut) * cut for n, cut in zip(shape, cuts, strict=True))


def axis_cuts(sharding: NamedSharding) -> list[int]:
    """The number of shards along each axis that the spec names."""
    axes = [(axis,) if isinstance(axis, str) else axis or () for axis in sharding.spec]
    return [math.prod(sharding.mesh.shape[name] for name in names) for names in axes]


def check_groups(name: str, weight: Any, shape: tuple[int, ...], sharding: Sharding) -> None:
    """ValueError if a shard boundary would split a quantization group."""
    if not isinstance(sharding, NamedSharding):
        return
    cuts, padded = axis_cuts(sharding), padded_shape(shape, sharding)
    for part, axes in layout_of(weight).items():
        for axis in axes:
            cut = _cut_of(axis, cuts) or 1
            if axis.of is None or cut == 1:
                continue
            if padded[axis.of] // cut % axis.per:
                raise ValueError(
                    f"{name}: {part} covers groups of {axis.per} along axis {axis.of}, and {cut} "
                    f"shards of {list(shape)} would split a group; use fewer devices or smaller "
                    "groups"
                )


def _cut_of(axis: PartAxis, cuts: Sequence[Any]) -> Any:
    """What cuts an axis of a part, given what cuts each axis of the weight; None: nothing."""
    return cuts[axis.of] if axis.of is not None and axis.of < len(cuts) else None
