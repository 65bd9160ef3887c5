"""The model that training begins with: random weights, or a checkpoint's, on the recipe's mesh."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from llama_jax.checkpoint import shapes
from llama_jax.checkpoint.named import find_checkpoint
from llama_jax.config import Config
from llama_jax.sharding.arrays import weight_shardings
from llama_jax.sharding.mesh import make_mesh
from llama_jax.tokenizer import load_tokenizer
from llama_jax.train.begin import of_checkpoint
from llama_jax.train.recipe import Recipe
from llama_jax.train.token_folder import TokenFolder, open_tokens
from llama_jax.weights.params import Params, nested
from llama_jax.weights.table import WeightPath, weight_keys, weight_table
from llama_jax.weights.weight import padded_shape


def given(recipe: Recipe, name: str) -> Any:
    """A field of a recipe; ValueError where it is empty."""
    value = getattr(recipe, name)
    if not value:
        raise ValueError(f"the recipe lacks {name}")
    return value


def mesh_for_recipe(recipe: Recipe) -> jax.sharding.Mesh | None:
    """The recipe's mesh, or None for one device."""
    m = recipe.mesh
    if jax.process_count() > 1 and m.devices != (there := jax.device_count()):
        raise ValueError(
            f"mesh.data x mesh.fsdp x mesh.tensor is {m.devices} and the {jax.process_count()} "
            f"processes have {there} devices; a mesh takes all of them: mesh.fsdp = {there}, say"
        )
    if m.devices == 1:
        return None
    return make_mesh(data=m.data, fsdp=m.fsdp, tensor=m.tensor)


def model_of(
    recipe: Recipe, tokens: TokenFolder, mesh: jax.sharding.Mesh | None
) -> tuple[Params, Callable[[], Params]]:
    """The model as shapes, and a function that makes it."""
    model = given(recipe, "model")
    if model.checkpoint:
        own = load_tokenizer(find_checkpoint(model.checkpoint))
        open_tokens(tokens.path, tokenizer=own)  # refuses another vocabulary
        return of_checkpoint(recipe, model.checkpoint, mesh)
    if recipe.lora is not None:
        raise ValueError("[lora] trains adapters of a checkpoint: give [model] checkpoint =")
    config = _config(model.config, model.fields, tokens.tokenizer)
    shardings = _shardings(config, mesh)
    table = weight_table(config)
    like = {
        path: jax.ShapeDtypeStruct(padded_shape(table[path].shape, one), jnp.float32, sharding=one)
        for path, one in shardings.items()
    }
    return Params(nested(like), config), lambda: _first_weights(config, shardings, recipe.seed)


def gathered(params: Params) -> Params:
    """Params that this process can write: each weight whole, where several processes hold parts."""
    if jax.process_count() == 1:
        return params
    from jax.experimental import multihost_utils

    def whole(weight: Any) -> Any:
        return jnp.asarray(multihost_utils.process_allgather(weight, tiled=True))

    return jax.tree.map(whole, params)


def planned_model(recipe: Recipe) -> tuple[Config, Params | None]:
    """The config of the model that a recipe trains, and a checkpoint's weights as shapes.

    The recipe's tokens need not be there yet.
    """
    model = given(recipe, "model")
    if model.checkpoint:
        found = shapes(model.checkpoint, dtype="float32")
        return found.config, found
    there = Path(recipe.tokens or "none").exists()
    tokenizer = open_tokens(recipe.tokens).tokenizer if there else None
    return _config(model.config, model.fields, tokenizer), None


def _config(name: str, fields: dict[str, Any], tokenizer: Path | None) -> Config:
    """The recipe's config, with the tokenizer's vocabulary unless the recipe states one."""
    if name.endswith(".json"):
        base = Config.from_json(json.loads(Path(name).read_text(encoding="utf-8")))
    else:
        base = Config.named(name)
    vocabulary = {}
    if tokenizer is not None:
        vocabulary = {"vocab_size": load_tokenizer(tokenizer).vocab_size}
    try:
        return Config.from_json(base.to_json() | vocabulary | fields)
    except ValueError as error:
        raise ValueError(f"[model.fields]: {error}") from None


def _first_weights(
    config: Config, shardings: dict[WeightPath, jax.sharding.Sharding], seed: int
) -> Params:
    """`init_params`, with the zeros that the mesh needs.

    A program for each shape and not one for all weights: that takes seconds to compile with 4
    layers, and a minute with 80.
    """
    table, weights = weight_table(config), {}
    for path, key in weight_keys(jax.random.key(seed), config).items():
        init: Any = table[path].init
        weights[path] = drawing(init, table[path].shape, shardings[path])(key)
    return Params(nested(weights), config)


@functools.lru_cache(maxsize=32)
def drawing(init: Any, shape: tuple[int, ...], sharding: jax.sharding.Sharding) -> Any:
    """A compiled function from a key to a weight."""
    more = [(0, n - m) for n, m in zip(padded_shape(shape, sharding), shape, strict=True)]
    return jax.jit(lambda key: jnp.pad(init(key, shape, jnp.float32), more), out_shardings=sharding)


def _shardings(
    config: Config, mesh: jax.sharding.Mesh | None
) -> dict[WeightPath, jax.sharding.Sharding]:
    if mesh is None:
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        return dict.fromkeys(weight_table(config), here)
    return dict(weight_shardings(config, mesh))
