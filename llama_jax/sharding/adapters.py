"""Adapters (LoRA) on a model's weights: laid out as these are, put on, taken off, merged."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, Sharding
from jaxtyping import PRNGKeyArray

from llama_jax.sharding.arrays import mesh_of, resized, weight_shardings
from llama_jax.weights.lora import Adapter, Lora
from llama_jax.weights.params import Params, check_params, nested, weight_at
from llama_jax.weights.table import WeightPath, weight_table
from llama_jax.weights.weight import PartAxis, padded_shape, part_shape, part_spec

Adapters = Mapping[WeightPath, Adapter]
"""Adapters by the paths of their weights."""


def adapters_of(params: Params) -> dict[WeightPath, Adapter]:
    """The adapters that a model has."""
    weights = {path: weight_at(params.weights, path) for path in weight_table(params.config)}
    return {path: w.adapter for path, w in weights.items() if isinstance(w, Lora)}


def without_adapters(params: Params) -> Params:
    """The model that the adapters change."""
    weights = jax.tree.map(base_of, params.weights, is_leaf=lambda w: isinstance(w, Lora))
    return params.replace(weights=weights)


def with_adapters(params: Params, adapters: Adapters) -> Params:
    """A model with these adapters, which lie as its weights do: see `put_adapters`."""
    weights = {path: weight_at(params.weights, path) for path in weight_table(params.config)}
    for path, one in adapters.items():
        weights[path] = Lora(base_of(weights[path]), one.a, one.b, one.scale)
    return params.replace(weights=nested(weights))


def put_adapters(params: Params, adapters: Adapters) -> dict[WeightPath, Adapter]:
    """Adapters, or their shapes, on the devices of the weights, each cut as its weight is."""
    mesh = mesh_of(params)
    shardings = {} if mesh is None else weight_shardings(params.config, mesh)
    found = {}
    for path, adapter in adapters.items():
        leaf = jax.tree.leaves(weight_at(params.weights, path))[0]
        found[path] = _put(adapter, shardings.get(path) or leaf.sharding)
    return found


def random_adapters(
    key: PRNGKeyArray, params: Params, paths: Iterable[WeightPath], rank: int, scale: float
) -> dict[WeightPath, Adapter]:
    """Adapters to train from, which change nothing yet: `b` is zero.

    `a` is uniform between -1 / sqrt(in) and 1 / sqrt(in), as peft begins. The same key gives the
    same numbers on every mesh.
    """
    table, found = weight_table(params.config), {}
    for index, path in enumerate(paths):
        inputs, outputs = table[path].shape
        limit, one = inputs**-0.5, jax.random.fold_in(key, index)
        a = jax.random.uniform(one, (inputs, rank), jnp.float32, -limit, limit)
        found[path] = Adapter(a, jnp.zeros((rank, outputs), jnp.float32), scale)
    return put_adapters(params, found)


def merge(params: Params) -> Params:
    """A model whose adapters are added into its weights, which become arrays.

    A quantized weight is dequantised first. The sum is taken in float32 and rounded once to the
    weight's dtype. bfloat16 loses part of what a small adapter adds: `load` the model in float32
    to merge without that loss. Weights that have no adapter stay as they are.
    """
    check_params(params)
    mesh = mesh_of(params)
    shardings = {} if mesh is None else weight_shardings(params.config, mesh)
    for path in adapters_of(params):
        dense = jax.jit(Lora.dense, out_shardings=shardings.get(path))
        params = params.with_weight(path, dense(weight_at(params.weights, path)))
    return params


def base_of(weight: Any) -> Any:
    """A weight without its adapter."""
    return weight.base if isinstance(weight, Lora) else weight


def _put(adapter: Adapter, sharding: Sharding) -> Adapter:
    axes, padded = adapter.axes(), padded_shape(adapter.shape, sharding)

    def put(part: Any, axes: tuple[PartAxis, ...]) -> Any:
        where, wanted = sharding, part_shape(axes, padded)
        if isinstance(sharding, NamedSharding):
            where = NamedSharding(sharding.mesh, part_spec(axes, sharding.spec))
        if isinstance(part, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(wanted, part.dtype, sharding=where)
        return jax.device_put(resized(part, part.shape, wanted), where)

    return Adapter(put(adapter.a, axes["a"]), put(adapter.b, axes["b"]), adapter.scale)
