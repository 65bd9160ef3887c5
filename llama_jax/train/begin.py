"""The model that a run begins with where it is a checkpoint: its weights, or adapters on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jax.sharding

from llama_jax.checkpoint import load, shapes
from llama_jax.config import Config
from llama_jax.sharding.adapters import adapters_of, put_adapters, random_adapters, with_adapters
from llama_jax.train.recipe import Lora, Recipe
from llama_jax.weights.lora import Adapter, scale_of
from llama_jax.weights.params import Params, weight_at
from llama_jax.weights.table import WeightPath, weight_table
from llama_jax.weights.weight import is_value


def of_checkpoint(
    recipe: Recipe, checkpoint: str, mesh: jax.sharding.Mesh | None
) -> tuple[Params, Callable[[], Params]]:
    """A checkpoint's model as shapes, and a function that loads it; with the recipe's adapters.

    Weights that stay as they are get the dtype of the products, in which alone they are read.
    """
    lora = recipe.lora
    how: Any = {"mesh": mesh, "dtype": "float32" if lora is None else recipe.step.dtype}
    like = shapes(checkpoint, **how)
    _check_no_adapters(like, checkpoint)
    if lora is None:
        _check_arrays(like, checkpoint)
        return like, lambda: load(checkpoint, **how)
    return (
        _adapter_shapes(lora, like),
        lambda: _new_adapters(lora, load(checkpoint, **how), recipe.seed),
    )


def _check_arrays(params: Params, checkpoint: str) -> None:
    """ValueError where weights are no arrays, which alone can be trained themselves."""
    for path in weight_table(params.config):
        if is_value(weight := weight_at(params.weights, path)):
            raise ValueError(
                f"{checkpoint}: {'.'.join(path)} is a weight of kind {weight.kind}, which is not "
                "trained itself; add [lora] to the recipe to train adapters on such weights"
            )


def _check_no_adapters(params: Params, checkpoint: str) -> None:
    """ValueError where a model has adapters already."""
    if adapters_of(params):
        raise ValueError(
            f"{checkpoint} has adapters already, and the recipe would train others; merge them "
            f"first: llama-jax merge {checkpoint} DESTINATION"
        )


def _new_adapters(lora: Lora, params: Params, seed: int) -> Params:
    """The model with the recipe's adapters, which change nothing yet."""
    key = jax.random.key(seed)
    scale = scale_of(lora.rank, lora.alpha, lora.rslora)
    return with_adapters(
        params, random_adapters(key, params, _targets(lora, params.config), lora.rank, scale)
    )


def _adapter_shapes(lora: Lora, params: Params) -> Params:
    """The shapes and shardings of `_new_adapters`, of those of a model."""
    table, scale = weight_table(params.config), scale_of(lora.rank, lora.alpha, lora.rslora)
    found = {}
    for path in _targets(lora, params.config):
        inputs, outputs = table[path].shape
        a = jax.ShapeDtypeStruct((inputs, lora.rank), jnp.float32)
        b = jax.ShapeDtypeStruct((lora.rank, outputs), jnp.float32)
        found[path] = Adapter(a, b, scale)
    return with_adapters(params, put_adapters(params, found))


def _targets(lora: Lora, config: Config) -> list[WeightPath]:
    return [path for path in weight_table(config) if path[-1] in lora.targets]
