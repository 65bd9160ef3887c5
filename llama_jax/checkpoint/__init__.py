"""Files to `Params` and back: our own checkpoints (Orbax), Meta's, Hugging Face's, GGUF."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from os import PathLike
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, Sharding

from llama_jax.checkpoint import native
from llama_jax.checkpoint.adapters import check_no_adapters
from llama_jax.checkpoint.convert import convert
from llama_jax.checkpoint.dtypes import parse_dtype
from llama_jax.checkpoint.named import find_checkpoint
from llama_jax.checkpoint.native.values import part_shardings
from llama_jax.checkpoint.peft import open_peft
from llama_jax.checkpoint.placing import default_sharding, place
from llama_jax.checkpoint.quantizing import AS_ARRAYS, as_arrays, rounded_shape, value_shape
from llama_jax.checkpoint.reading import open_checkpoint
from llama_jax.checkpoint.saving import save
from llama_jax.checkpoint.source import Source, own_tokenizer
from llama_jax.compilation import keep_programs
from llama_jax.config import Config
from llama_jax.kernels import weight_dtype
from llama_jax.sharding.adapters import adapters_of, put_adapters, with_adapters
from llama_jax.sharding.arrays import weight_shardings
from llama_jax.tokenizer.folder import given_path
from llama_jax.weights.lora import Adapter
from llama_jax.weights.params import Params, Weights, nested
from llama_jax.weights.quantize import Rule, kind_of, rounded_weight
from llama_jax.weights.table import WeightPath, WeightRow, weight_table
from llama_jax.weights.weight import (
    ARRAY,
    is_value,
    layout_of,
    padded_shape,
    part_shape,
    parts_of,
    read_dtype,
)

__all__ = ["convert", "load", "save", "shapes"]


def load(
    path: str | PathLike[str] | None = None,
    *,
    mesh: Mesh | None = None,
    dtype: Any = None,
    quantize: Rule | None = None,
    adapter: str | PathLike[str] | None = None,
) -> Params:
    """The model in a directory: a native checkpoint, or Meta's or Hugging Face's files; or in GGUF.

    What lies there tells which. `path` may be a GGUF file itself. Without a path it is the model
    that comes with the package, which tells stories. "hf:ORG/NAME" is a repository of the Hub,
    downloaded where it is not here, and `checkpoint.named.NAMES` has names of further models.
    `adapter` is a folder in which Hugging Face's peft saved a LoRA adapter of this model: its
    matrices are used beside the weights, and `merge` adds them in.

    With a mesh every weight goes straight to its shards; without one, to the default device.
    `dtype` ("bfloat16", jnp.float32 ...) is the weights' and so the arithmetic's; by default
    float32 on CPU, where XLA multiplies bfloat16 slowly, and bfloat16 elsewhere.
    `quantize` (a kind, as "int8", or a rule) rounds each matrix as it is read, as
    `llama_jax.quantize` does, so the whole model is never in memory at its full size. What a file
    holds in 8 or 4 bits stays so, and with "none" becomes arrays.

    FileNotFoundError where there is no checkpoint, ValueError where there is a broken one, or the
    adapter is of another model.

    From here on compiled programs are kept in the user's cache folder: `compilation.keep_programs`.
    """
    keep_programs()
    path = find_checkpoint(path)
    if native.is_native(path) and quantize is None:
        config = native.read_config(path)
        adapters = _adapters(adapter, config, path)
        shardings = _shardings(config, mesh)
        dtype = _dtype(shardings, dtype)
        weights = native.read_weights(path, config, shardings=shardings, dtype=dtype)
        return _adapted(Params(weights, config, own_tokenizer(path)), adapters, path)
    source, quantize = _opened(path, quantize)
    adapters = _adapters(adapter, source.config, path)
    shardings = _shardings(source.config, mesh)
    for warning in source.warnings:
        warnings.warn(warning, stacklevel=2)
    with ThreadPoolExecutor(1) as beside:  # it reads the same bytes, and computes outside Python
        sums = beside.submit(source.check_sums)
        weights = _place(source, shardings, _dtype(shardings, dtype), quantize)
        sums.result()
    return _adapted(Params(weights, source.config, source.tokenizer), adapters, path)


def shapes(
    path: str | PathLike[str] | None = None,
    *,
    mesh: Mesh | None = None,
    dtype: Any = None,
    quantize: Rule | None = None,
    adapter: str | PathLike[str] | None = None,
) -> Params:
    """What `load` will return, with shapes in place of weights; none is read."""
    path = find_checkpoint(path)
    if native.is_native(path) and quantize is None:
        config, tokenizer = native.read_config(path), own_tokenizer(path)
        stored = native.stored_weights(path, config)
    else:
        source, quantize = _opened(path, quantize)
        config, tokenizer = source.config, source.tokenizer
        kinds = {at: kind_of(quantize, at, tuple(t.shape)) for at, t in source.tensors.items()}
        stored = {
            at: rounded_shape(source.tensors[at], kind, at) for at, kind in kinds.items() if kind
        }
        for at, tensor in source.tensors.items():
            if at not in stored and is_value(tensor):
                stored[at] = value_shape(tensor, tensor.dtype)
    shardings = _shardings(config, mesh)
    dtype = _dtype(shardings, dtype)
    weights = {
        row.path: _shape(stored.get(row.path), row, shardings[row.path], dtype)
        for row in weight_table(config).values()
    }
    adapters = {
        path: jax.tree.map(_as_shape, one) for path, one in _adapters(adapter, config, path).items()
    }
    return _adapted(Params(nested(weights), config, tokenizer), adapters, path)


def _place(
    source: Source,
    shardings: dict[WeightPath, Sharding],
    dtype: np.dtype,
    quantize: Rule | None = None,
) -> Weights:
    """Each weight read where it is wanted: a process touches only the bytes of its own shards."""
    weights = {}
    for path, tensor in source.tensors.items():
        kind = kind_of(quantize, path, tuple(tensor.shape))
        if kind is None:
            weights[path] = _placed(tensor, path, shardings[path], dtype)
            continue
        rounded_shape(tensor, kind, path)  # an error before any number is read
        array = place(tensor.shape, tensor.dtype, shardings[path], tensor.read)
        weights[path] = rounded_weight(array, kind, path, dtype)
    return nested(weights)


def _adapters(
    folder: str | PathLike[str] | None, config: Config, path: Path
) -> dict[WeightPath, Adapter]:
    """The adapters in a folder of peft's, none of their matrices read."""
    return {} if folder is None else open_peft(given_path(folder), config, path)


def _adapted(params: Params, adapters: Mapping[WeightPath, Adapter], path: Path) -> Params:
    """The model with these adapters, read onto the devices of its weights."""
    if not adapters:
        return params
    check_no_adapters(bool(adapters_of(params)), path)
    read = {path: Adapter(_read(one.a), _read(one.b), one.scale) for path, one in adapters.items()}
    return with_adapters(params, put_adapters(params, read))


def _read(part: Any) -> Any:
    return part if isinstance(part, jax.ShapeDtypeStruct) else part[...]


def _as_shape(part: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(part.shape, part.dtype)


def _placed(tensor: Any, path: WeightPath, sharding: Sharding, dtype: np.dtype) -> Any:
    """A weight on its devices, as it is stored: an array, or a value made of its parts."""
    if not is_value(tensor):
        return place(tensor.shape, dtype, sharding, tensor.read)
    shape: Any = value_shape(tensor, dtype)
    where = dict(part_shardings(shape, shape.shape, sharding, path))
    parts = {
        name: place(part.shape, part.dtype, where[name], part.read)
        for name, part in tensor.parts().items()
    }
    return type(shape).from_parts(parts, tensor.constants(), dtype)


def _opened(path: Path, quantize: Rule | None) -> tuple[Source, Rule | None]:
    """The checkpoint, its weights as asked for, and the rule by which they are still rounded."""
    source = open_checkpoint(path)
    if quantize != AS_ARRAYS:
        return source, quantize
    return dataclasses.replace(source, tensors=as_arrays(source.tensors)), None


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
            part_shape(layout[name], padded),
            read_dtype(weight, name, dtype),
            sharding=where[name],
        )
        for name, part in parts_of(weight).items()
    }
    if is_value(weight):
        return type(weight).from_parts(parts, weight.constants(), dtype)
    return parts[ARRAY]
