"""The memory of a model and its cache on each device, computed from shapes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, NamedSharding

from llama_jax.checkpoint.dtypes import parse_dtype
from llama_jax.config import Config
from llama_jax.model.cache import Cache, KVCache
from llama_jax.sharding.arrays import sharding_of, weight_shardings
from llama_jax.sharding.mesh import mesh_for
from llama_jax.weights.table import WeightPath, weight_table
from llama_jax.weights.weight import (
    is_value,
    layout_of,
    padded_shape,
    part_shape,
    part_spec,
    parts_of,
)


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes that a model and its cache take on a mesh; activations come on top."""

    devices: int
    rows: int
    """Rows of the cache: the batch, rounded up to a multiple of `data * fsdp`."""
    weights: int
    """On all devices together; a weight that several hold counts for each."""
    weights_per_device: int
    cache: int
    cache_per_device: int

    @property
    def per_device(self) -> int:
        return self.weights_per_device + self.cache_per_device


def memory(
    config: Config,
    *,
    dtype: Any,
    batch: int,
    context: int,
    data: int = 1,
    fsdp: int = 1,
    tensor: int = 1,
    cache_dtype: Any = None,
    cache: type[Cache] = KVCache,
    stored: Mapping[WeightPath, Any] | None = None,
) -> Memory:
    """What `load(..., dtype=dtype)` and a cache of `batch` rows by `context` positions take.

    The cache has the weights' dtype unless another is given. `stored` has the weights as they lie
    in a checkpoint: those that are no arrays, quantized ones, keep their parts.

    The devices need not be there. ValueError where a number is below 1, the context beyond the
    model's, or the mesh does not fit.
    """
    _check_counts(batch=batch, context=context, data=data, fsdp=fsdp, tensor=tensor)
    if context > config.max_seq_len:
        raise ValueError(
            f"context={context} is beyond max_seq_len={config.max_seq_len}, where the model ends; "
            "lower it, or convert the checkpoint with a larger --max-seq-len"
        )
    dtype = parse_dtype(dtype)
    mesh = _abstract_mesh(data, fsdp, tensor)
    weights = weight_bytes(config, dtype, stored or {}, data=data, fsdp=fsdp, tensor=tensor)
    rows = math.ceil(batch / (data * fsdp)) * data * fsdp
    kept = dtype if cache_dtype is None else parse_dtype(cache_dtype)
    shapes = jax.eval_shape(lambda: cache.empty(config, batch=rows, slots=context, dtype=kept))
    model_mesh = mesh_for(config, mesh)
    of_cache = sum(
        _part_bytes(x.shape, x.dtype, sharding_of(model_mesh, spec))
        for x, spec in zip(jax.tree.leaves(shapes), jax.tree.leaves(shapes.specs()), strict=True)
    )
    devices = data * fsdp * tensor
    return Memory(
        devices=devices,
        rows=rows,
        weights=weights * devices,
        weights_per_device=weights,
        cache=of_cache * devices,
        cache_per_device=of_cache,
    )


def weight_bytes(
    config: Config,
    dtype: Any,
    stored: Mapping[WeightPath, Any],
    *,
    data: int = 1,
    fsdp: int = 1,
    tensor: int = 1,
) -> int:
    """Bytes of a model's weights on each device, with `dtype` and `stored` as in `memory`."""
    shardings = weight_shardings(config, _abstract_mesh(data, fsdp, tensor))
    return sum(
        _weight_bytes(stored.get(path), row.shape, parse_dtype(dtype), shardings[path])
        for path, row in weight_table(config).items()
    )


def _abstract_mesh(data: int, fsdp: int, tensor: int) -> AbstractMesh:
    axes = ("data", "fsdp", "tensor")
    return AbstractMesh((data, fsdp, tensor), axes, axis_types=(AxisType.Auto,) * 3)


def _weight_bytes(weight: Any, shape: tuple[int, ...], dtype: Any, sharding: NamedSharding) -> int:
    """Bytes of one device's shard of an array, or of the parts of a value."""
    if not is_value(weight):
        return _part_bytes(shape, dtype, sharding)
    padded, parts = padded_shape(shape, sharding), parts_of(weight)
    lies = lambda axes: NamedSharding(sharding.mesh, part_spec(axes, sharding.spec))  # noqa: E731
    return sum(
        _part_bytes(part_shape(axes, padded), np.dtype(parts[name].dtype), lies(axes))
        for name, axes in layout_of(weight).items()
    )


def _part_bytes(shape: tuple[int, ...], dtype: Any, sharding: NamedSharding) -> int:
    """Bytes of one device's shard, the padding of uneven axes included."""
    return math.prod(sharding.shard_shape(padded_shape(shape, sharding))) * dtype.itemsize


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name}={count} must be at least 1")
