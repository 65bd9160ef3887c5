"""What a checkpoint is, and what it will take to run, before anything is allocated."""

from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, NamedSharding

from llama_jax.checkpoint import native
from llama_jax.checkpoint.dtypes import parse_dtype
from llama_jax.checkpoint.names import table
from llama_jax.checkpoint.reading import open_checkpoint
from llama_jax.checkpoint.source import Source
from llama_jax.config import Config
from llama_jax.model.cache import KVCache
from llama_jax.sharding.arrays import CACHE, padded_shape, sharding_of, weight_shardings
from llama_jax.sharding.mesh import mesh_for


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
    cache_dtype: Any = None,
) -> Memory:
    """What `load(..., dtype=dtype)` and a cache of `batch` rows by `context` positions take.

    The cache is of the weights' dtype unless another is given, say by `sharding.cache_dtype_on`.
    The tables of `sharding.py` say how each array is cut; the devices need not be there.
    """
    _check_counts(batch=batch, context=context, data=data, fsdp=fsdp, tensor=tensor)
    if context > config.max_seq_len:
        raise ValueError(
            f"context={context} is beyond max_seq_len={config.max_seq_len}, where the model ends; "
            "lower it, or convert the checkpoint with a larger --max-seq-len"
        )
    dtype = parse_dtype(dtype)
    kept = dtype if cache_dtype is None else parse_dtype(cache_dtype)
    axes = ("data", "fsdp", "tensor")
    mesh = AbstractMesh((data, fsdp, tensor), axes, axis_types=(AxisType.Auto,) * 3)
    shardings = weight_shardings(config, mesh)
    parts = [_part_numbers(w.shape, shardings[w.path]) for w in table(config)]
    rows = math.ceil(batch / (data * fsdp)) * data * fsdp
    cache = jax.eval_shape(lambda: KVCache.empty(config, batch=rows, slots=context, dtype=kept))
    lies = sharding_of(mesh_for(config, mesh), CACHE)
    here = sum(_part_numbers(x.shape, lies) * kept.itemsize for x in jax.tree.leaves(cache))
    devices = data * fsdp * tensor
    return Memory(
        devices=devices,
        rows=rows,
        weights=sum(parts) * dtype.itemsize * devices,
        weights_per_device=sum(parts) * dtype.itemsize,
        cache=here * devices,
        cache_per_device=here,
    )


def _part_numbers(shape: tuple[int, ...], sharding: NamedSharding) -> int:
    """How many numbers of an array a device holds; what its axes do not divide is padded."""
    return math.prod(sharding.shard_shape(padded_shape(shape, sharding)))


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name}={count} must be at least 1")
