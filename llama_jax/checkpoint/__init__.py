"""Files to `Params` and back: our own checkpoints (Orbax), Meta's, Hugging Face's, GGUF."""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor
from os import PathLike
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, Sharding

from llama_jax.checkpoint import native
from llama_jax.checkpoint.blocks import Trimmed
from llama_jax.checkpoint.convert import convert
from llama_jax.checkpoint.dtypes import parse_dtype
from llama_jax.checkpoint.files.given_path import given_path
from llama_jax.checkpoint.named import find_checkpoint
from llama_jax.checkpoint.native.values import part_shardings
from llama_jax.checkpoint.placement import default_sharding, place
from llama_jax.checkpoint.reading import open_source
from llama_jax.checkpoint.source import Source, own_tokenizer
from llama_jax.compilation import keep_programs
from llama_jax.config import Config
from llama_jax.kernels import weight_dtype
from llama_jax.sharding.arrays import weight_shardings
from llama_jax.weights.params import Params, Weights, check_params, nested, weight_at
from llama_jax.weights.table import WeightPath, WeightRow, weight_table
from llama_jax.weights.weight import (
    ARRAY,
    is_value,
    layout_of,
    padded_shape,
    part_shape,
    parts_of,
)

__all__ = ["convert", "load", "save", "shapes"]


def load(
    path: str | PathLike[str] | None = None, *, mesh: Mesh | None = None, dtype: Any = None
) -> Params:
    """The model in a directory: a native checkpoint, or Meta's or Hugging Face's files; or in GGUF.

    What lies there tells which. `path` may be a GGUF file itself. Without a path it is the model
    that comes with the package, which tells stories. "hf:ORG/NAME" is a repository of the Hub,
    downloaded where it is not here, and `checkpoint.named.NAMES` has names of further models.

    With a mesh every weight goes straight to its shards; without one, to the default device.
    `dtype` ("bfloat16", jnp.float32 ...) is the weights' and so the arithmetic's; by default
    float32 on CPU, where XLA multiplies bfloat16 slowly, and bfloat16 elsewhere.

    FileNotFoundError where there is no checkpoint, ValueError where there is a broken one.

    From here on compiled programs are kept in the user's cache folder: `compilation.keep_programs`.
    """
    keep_programs()
    path = find_checkpoint(path)
    if native.is_native(path):
        config = native.read_config(path)
        shardings = _shardings(config, mesh)
        dtype = _dtype(shardings, dtype)
        weights = native.read_weights(path, config, shardings=shardings, dtype=dtype)
        return Params(weights, config, own_tokenizer(path))
    source = open_source(path)
    shardings = _shardings(source.config, mesh)
    for warning in source.warnings:
        warnings.warn(warning, stacklevel=2)
    with ThreadPoolExecutor(1) as beside:  # it reads the same bytes, and computes outside Python
        sums = beside.submit(source.check_sums)
        weights = _place(source, shardings, _dtype(shardings, dtype))
        sums.result()
    return Params(weights, source.config, source.tokenizer)


def shapes(
    path: str | PathLike[str] | None = None, *, mesh: Mesh | None = None, dtype: Any = None
) -> Params:
    """What `load` will return, with shapes in place of weights; none is read."""
    path = find_checkpoint(path)
    if native.is_native(path):
        config, tokenizer = native.read_config(path), own_tokenizer(path)
    else:
        source = open_source(path)
        config, tokenizer = source.config, source.tokenizer
    shardings = _shardings(config, mesh)
    dtype = _dtype(shardings, dtype)
    stored = native.stored_weights(path, config) if native.is_native(path) else {}
    weights = {
        row.path: _shape(stored.get(row.path), row, shardings[row.path], dtype)
        for row in weight_table(config).values()
    }
    return Params(nested(weights), config, tokenizer)


def save(params: Params, path: str | PathLike[str], *, overwrite: bool = False) -> None:
    """Writes a native checkpoint, weights as they are, with a copy of the tokenizer.

    All at once: a failure leaves `path` as it was. An existing directory is an error, unless it
    is empty, or a checkpoint and `overwrite` is set.
    """
    check_params(params)
    weights = {
        path: _unpadded(weight_at(params.weights, path), row.shape)
        for path, row in weight_table(params.config).items()
    }
    native.write(
        given_path(path), params.config, weights, tokenizer=params.tokenizer, overwrite=overwrite
    )


def _place(source: Source, shardings: dict[WeightPath, Sharding], dtype: np.dtype) -> Weights:
    """Each weight read where it is wanted: a process touches only the bytes of its own shards."""
    return nested(
        {
            path: place(tensor.shape, dtype, shardings[path], tensor.read)
            for path, tensor in source.tensors.items()
        }
    )


def _shardings(config: Config, mesh: Mesh | None) -> dict[WeightPath, Sharding]:
    if mesh is not None:
        return dict(weight_shardings(config, mesh))
    return dict.fromkeys(weight_table(config), default_sharding())


def _dtype(shardings: dict[WeightPath, Sharding], wanted: Any) -> np.dtype:
    if wanted is not None:
        return parse_dtype(wanted)
    device: Any = next(iter(next(iter(shardings.values())).device_set))
    return weight_dtype(device.platform)


def _shape(stored: Any, row: WeightRow, sharding: Sharding, dtype: np.dtype) -> Any:
    """A weight as `load` will place it, with shapes in place of arrays."""
    weight = stored if is_value(stored) else jax.ShapeDtypeStruct(row.shape, dtype)
    where = dict(part_shardings(weight, row.shape, sharding, row.path))
    padded, layout = padded_shape(row.shape, sharding), layout_of(weight)
    parts = {
        name: jax.ShapeDtypeStruct(
            part_shape(layout[name], padded), part.dtype, sharding=where[name]
        )
        for name, part in parts_of(weight).items()
    }
    if is_value(weight):
        return type(weight).from_parts(parts, weight.constants(), dtype)
    return parts[ARRAY]


def _unpadded(weight: Any, shape: tuple[int, ...]) -> Any:
    """A weight without what a mesh may have put after it; a value's parts lose theirs later."""
    return weight if is_value(weight) or weight.shape == shape else Trimmed(weight, shape)
