"""What training carries from step to step."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float32, Int32

from llama_jax.train.optimizer import direction
from llama_jax.train.recipe import Recipe
from llama_jax.weights.params import Params, weight_at
from llama_jax.weights.table import weight_table


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """A model in training: float32 weights, the optimizer's moments, and counts."""

    step: Int32[Array, ""]
    """Steps taken, left-out ones among them: the next step's number, which decides its rows."""
    params: Params
    moments: Any
    """The optimizer's state: two moments of each weight for AdamW."""
    average: Params | None
    """An exponential moving average of the weights, where the recipe asks for one."""
    norm: Float32[Array, ""]
    """The running mean of the gradients' norm, over about 100 steps; 0 before the first."""
    left_out: Int32[Array, ""]
    """Steps that changed nothing, because their loss or gradients were bad."""
    left_out_in_a_row: Int32[Array, ""]


def new_state(recipe: Recipe, params: Params) -> TrainState:
    """The state before the first step, laid out over the devices as `params` are.

    The weights are float32 from here on, whatever they were.
    """
    begin = jax.jit(functools.partial(_begin, recipe), out_shardings=_shardings(recipe, params))
    return begin(params)


def state_shapes(recipe: Recipe, params: Params) -> TrainState:
    """The shapes and shardings of the state of such params, which may be shapes themselves."""
    shapes = jax.eval_shape(functools.partial(_begin, recipe), params)

    def one(x: Any, sharding: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(one, shapes, _shardings(recipe, params))


def _begin(recipe: Recipe, params: Params) -> TrainState:
    params = jax.tree.map(lambda w: w.astype(jnp.float32), params)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        moments=direction(recipe.optimizer, params).init(params),
        average=jax.tree.map(jnp.copy, params) if recipe.step.average else None,
        norm=jnp.zeros((), jnp.float32),
        left_out=jnp.zeros((), jnp.int32),
        left_out_in_a_row=jnp.zeros((), jnp.int32),
    )


def _shardings(recipe: Recipe, params: Params) -> Any:
    """How each array of a state lies: a weight's moments as the weight, counts on every device."""
    table = weight_table(params.config)
    shardings = {path: weight_at(params.weights, path).sharding for path in table}
    everywhere = _replicated(next(iter(shardings.values())))

    def one(path: Any, _: Any) -> jax.sharding.Sharding:
        keys = tuple(key.key for key in path if isinstance(key, jax.tree_util.DictKey))
        found = [keys[-n:] for n in (2, 3) if keys[-n:] in shardings]
        return shardings[found[0]] if found else everywhere

    shapes = jax.eval_shape(functools.partial(_begin, recipe), params)
    return jax.tree_util.tree_map_with_path(one, shapes)


def _replicated(sharding: jax.sharding.Sharding) -> jax.sharding.Sharding:
    return NamedSharding(sharding.mesh, P()) if isinstance(sharding, NamedSharding) else sharding
