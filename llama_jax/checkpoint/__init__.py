"""Files to `Params` and back: the project's own checkpoints (Orbax), Meta's, Hugging Face's."""

from __future__ import annotations

import functools
import operator
from os import PathLike
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, Sharding

from llama_jax.checkpoint import native
from llama_jax.checkpoint.blocks import Tensor, Trimmed
from llama_jax.checkpoint.convert import convert
from llama_jax.checkpoint.dtypes import default_dtype, parse_dtype
from llama_jax.checkpoint.names import Weight, table
from llama_jax.checkpoint.placement import default_sharding, place
from llama_jax.checkpoint.reading import open_source
from llama_jax.checkpoint.source import Source, own_tokenizer
from llama_jax.compilation import keep_programs
from llama_jax.config import Config
from llama_jax.sharding.arrays import padded_shape, weight_shardings
from llama_jax.weights.params import Params, WeightPath, Weights, nested, true_shape

__all__ = ["convert", "load", "save", "shapes"]


def load(path: str | PathLike[str], *, mesh: Mesh | None = None, dtype: Any = None) -> Params:
    """The model in a directory: a native checkpoint, or Meta's or Hugging Face's files.

    What lies there tells which.

    With a mesh every weight goes straight to its shards; without one, to the default device.
    `dtype` ("bfloat16", jnp.float32 ...) is the weights' and so the arithmetic's; by default
    float32 on CPU, where XLA multiplies bfloat16 slowly, and bfloat16 elsewhere.

    FileNotFoundError where there is no checkpoint, ValueError where there is a broken one.

    From here on compiled programs are kept in the user's cache folder: `compilation.keep_programs`.
    """
    keep_programs()
    path = Path(path)
    if native.is_native(path):
        config = native.read_config(path)
        shardings = _shardings(config, mesh)
        dtype = _dtype(shardings, dtype)
        weights = native.read_weights(path, config, shardings=shardings, dtype=dtype)
        return Params(weights, config, own_tokenizer(path))
    source = open_source(path)
    shardings = _shardings(source.config, mesh)
    weights = _place(source, shardings, _dtype(shardings, dtype))
    return Params(weights, source.config, source.tokenizer)


def shapes(path: str | PathLike[str], *, mesh: Mesh | None = None, dtype: Any = None) -> Params:
    """What `load` will return, with shapes in place of weights; none is read."""
    path = Path(path)
    if native.is_native(path):
        config, tokenizer = native.read_config(path), own_tokenizer(path)
    else:
        source = open_source(path)
        config, tokenizer = source.config, source.tokenizer
    shardings = _shardings(config, mesh)
    dtype, weights = _dtype(shardings, dtype), {}
    for row in table(config):
        sharding = shardings[row.path]
        shape = padded_shape(row.shape, sharding)
        weights[row.path] = jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
    return Params(nested(weights), config, tokenizer)


def save(params: Params, path: str | PathLike[str], *, overwrite: bool = False) -> None:
    """Writes a native checkpoint, weights as they are, with a copy of the tokenizer.

    All at once: a failure leaves `path` as it was. An existing directory is an error, unless it
    is empty, or a checkpoint and `overwrite` is set.
    """
    weights = {
        row.path: _stored(params.config, params.weights, row) for row in table(params.config)
    }
    native.write(
        Path(path), params.config, weights, tokenizer=params.tokenizer, overwrite=overwrite
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
    return dict.fromkeys((row.path for row in table(config)), default_sharding())


def _dtype(shardings: dict[WeightPath, Sharding], wanted: Any) -> np.dtype:
    if wanted is not None:
        return parse_dtype(wanted)
    device: Any = next(iter(next(iter(shardings.values())).device_set))
    return default_dtype(device.platform)


def _stored(config: Config, weights: Weights, row: Weight) -> Tensor:
    """A weight as the model has it, without what a mesh may have put after it."""
    array: Any = functools.reduce(operator.getitem, row.path, weights)
    shape = true_shape(config, row.path, array.shape)
    return array if shape == array.shape else Trimmed(array, shape)
