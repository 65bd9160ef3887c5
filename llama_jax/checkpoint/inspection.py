"""What a checkpoint is, and what it will take to run, before anything is allocated."""

from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, Mesh, PartitionSpec

from llama_jax.cache import KVCache
from llama_jax.checkpoint import native
from llama_jax.checkpoint.dtypes import parse_dtype
from llama_jax.checkpoint.names import table
from llama_jax.checkpoint.reading import open_checkpoint
from llama_jax.checkpoint.source import Source
from llama_jax.config import Config
from llama_jax.sharding import CACHE, weight_shardings


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What lies in a checkpoint."""

    source: Source
    parameters: dict[str, int]
    """How many numbers are stored in each dtype."""
    files: int
    """That hold weights."""
    disk_bytes: int
    """Of the weights' files, and of what describes them."""


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes that a model and its cache take on a mesh; activations come on top."""

    devices: int
    rows: int
    """Of the cache, the batch padded to what `data * fsdp` divides."""
    weights: int
    """On all devices together, a weight that several hold counted for each."""
    weights_per_device: int
    cache: int
    cache_per_device: int

    @property
    def per_device(self) -> int:
        return self.weights_per_device + self.cache_per_device


def inspect_checkpoint(path: str | os.PathLike[str]) -> Inspection:
    """Opens a checkpoint of any format and counts what is there; no weight is loaded."""
    source = open_checkpoint(path)
    parameters: dict[str, int] = {}
    for tensor in source.tensors.values():
        name = tensor.dtype.name
        parameters[name] = parameters.get(name, 0) + math.prod(tensor.shape)
    files = source.files
    if source.format == "native":
        root = Path(path) / native.WEIGHTS
        files = tuple(f for f in root.rglob("*") if f.is_file())
        count = sum("c" in f.relative_to(root).parts for f in files)  # the others say what is there
    else:
        count = len(files)
    return Inspection(source, parameters, count, sum(f.stat().st_size for f in files))


def memory(
    config: Config,
    *,
    dtype: Any,
    batch: int,
    context: int,
    data: int = 1,
    fsdp: int = 1,
    tensor: int = 1,
) -> Memory:
    """What `load(..., dtype=dtype)` and a cache of `batch` rows by `context` positions take.

    The tables of `sharding.py` say how each array is cut; the devices need not be there.
    """
    _check_counts(batch=batch, context=context, data=data, fsdp=fsdp, tensor=tensor)
    if context > config.max_seq_len:
        raise ValueError(
            f"context={context} is beyond max_seq_len={config.max_seq_len}, where the model ends; "
            "lower it, or convert the checkpoint with a larger --max-seq-len"
        )
    dtype = parse_dtype(dtype)
    sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
    mesh = AbstractMesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * 3)
    shardings = weight_shardings(config, cast(Mesh, mesh))
    parts = [math.prod(shardings[w.path].shard_shape(w.shape)) for w in table(config)]
    cache = jax.eval_shape(
        lambda: KVCache.empty(config, batch=batch, slots=context, dtype=jnp.dtype(dtype))
    )
    here = sum(_part_numbers(leaf.shape, CACHE, sizes) for leaf in jax.tree.leaves(cache))
    here *= dtype.itemsize
    devices = data * fsdp * tensor
    return Memory(
        devices=devices,
        rows=math.ceil(batch / (data * fsdp)) * data * fsdp,
        weights=sum(parts) * dtype.itemsize * devices,
        weights_per_device=sum(parts) * dtype.itemsize,
        cache=here * devices,
        cache_per_device=here,
    )


def _part_numbers(shape: tuple[int, ...], spec: PartitionSpec, mesh: dict[str, int]) -> int:
    """How many numbers of an array a device holds; what its axes do not divide is padded."""
    axes = [(axis,) if isinstance(axis, str) else axis or () for axis in spec]
    parts = [math.prod(mesh[axis] for axis in group) for group in axes]
    return math.prod(math.ceil(size / part) for size, part in zip(shape, parts, strict=True))


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name}={count} must be at least 1")
