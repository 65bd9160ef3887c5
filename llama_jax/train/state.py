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

from llama_jax.pytrees import register_dataclass
from llama_jax.train.optimizer import direction
from llama_jax.train.recipe import Recipe
from llama_jax.train.trained import Trained, joined, split
from llama_jax.weights.params import Params


@register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """A model in training: float32 weights, the optimizer's moments, and counts."""

    step: Int32[Array, ""]
    """Steps taken, left-out ones among them: the next step's number, which decides its rows."""
    params: Params
    """The model. Where it has adapters, they alone are trained, and its weights never change."""
    moments: Any
    """The optimizer's state: two moments of each trained weight for AdamW."""
    average: Trained | None
    """An exponential moving average of what is trained, where the recipe asks for one."""
    norm: Float32[Array, ""]
    """The running mean of the gradients' norm, over about 100 steps; 0 before the first."""
    left_out: Int32[Array, ""]
    """Steps that changed nothing, because their loss or gradients were bad."""
    left_out_in_a_row: Int32[Array, ""]


def new_state(recipe: Recipe, params: Params) -> TrainState:
    """The state before the first step, laid out over the devices as `params` are.

    What is trained is float32 from here on, whatever it was. Frozen weights are `params`' own.
    """
    trained, frozen = split(params)
    begin = jax.jit(functools.partial(_begin, recipe), out_shardings=_shardings(recipe, trained))
    return with_frozen(begin(trained), frozen)


def state_shapes(recipe: Recipe, params: Params) -> TrainState:
    """The shapes and shardings of the state of such params, which may be shapes themselves."""
    trained, frozen = split(params)
    shapes = jax.eval_shape(functools.partial(_begin, recipe), trained)

    def one(x: Any, sharding: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return with_frozen(jax.tree.map(one, shapes, _shardings(recipe, trained)), frozen)


def without_frozen(state: TrainState) -> TrainState:
    """What steps change of a state, which is what a run saves: adapters in place of the model."""
    trained: Any = split(state.params)[0]
    return dataclasses.replace(state, params=trained)


def with_frozen(state: TrainState, frozen: Params | None) -> TrainState:
    """The whole state again."""
    return dataclasses.replace(state, params=joined(state.params, frozen))


def result(state: TrainState) -> Params:
    """The model that a state has come to: its average, where the recipe asks for one."""
    if state.average is None:
        return state.params
    return joined(state.average, split(state.params)[1])


def _begin(recipe: Recipe, trained: Trained) -> TrainState:
    trained = jax.tree.map(lambda w: w.astype(jnp.float32), trained)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=trained,  # type: ignore[arg-type]  # until the frozen weights are put beside it
        moments=direction(recipe.optimizer, trained).init(trained),
        average=jax.tree.map(jnp.copy, trained) if recipe.step.average else None,
        norm=jnp.zeros((), jnp.float32),
        left_out=jnp.zeros((), jnp.int32),
        left_out_in_a_row=jnp.zeros((), jnp.int32),
    )


def _shardings(recipe: Recipe, trained: Trained) -> Any:
    """How each array of a state lies: a weight's moments as the weight, counts on every device."""
    leaves = jax.tree_util.tree_leaves_with_path(trained)
    shardings = {_keys(path): leaf.sharding for path, leaf in leaves}
    everywhere = _replicated(next(iter(shardings.values())))

    def one(path: Any, _: Any) -> jax.sharding.Sharding:
        keys = _keys(path)
        found = [keys[-n:] for n in (2, 3, 4) if keys[-n:] in shardings]
        return shardings[found[0]] if found else everywhere

    shapes = jax.eval_shape(functools.partial(_begin, recipe), trained)
    return jax.tree_util.tree_map_with_path(one, shapes)


def _keys(path: Any) -> tuple[str, ...]:
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


def _replicated(sharding: jax.sharding.Sharding) -> jax.sharding.Sharding:
    return NamedSharding(sharding.mesh, P()) if isinstance(sharding, NamedSharding) else sharding
