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
from llama_jax.model.transformer import init_params
from llama_jax.sharding.arrays import weight_shardings
from llama_jax.sharding.mesh import make_mesh
from llama_jax.tokenizer import load_tokenizer
from llama_jax.train.begin import of_checkpoint
from llama_jax.train.recipe import Recipe
from llama_jax.train.token_folder import TokenFolder, open_tokens
from llama_jax.weights.params import Params, nested
from llama_jax.weights.table import weight_table
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
    config = _config(model.config, model.fields, tokens.tokenizer)
    shardings = _shardings(config, mesh)
    make = functools.partial(_padded_params, config, mesh, recipe.seed)
    like = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        jax.eval_shape(make),
        shardings,
    )
    return like, jax.jit(make, out_shardings=shardings)


def gathered(params: Params) -> Params:
    """Params that this process can write: each weight whole, where several processes hold parts."""
    if jax.process_count() == 1:
        return params
    from jax.experimental import multihost_utils

    def whole(weight: Any) -> Any:
        return jnp.asarray(multihost_utils.process_allgather(weight, tiled=True))

    return jax.tree.map(whole, params)


def config_of(recipe: Recipe) -> Config:
    """The config of the model that a recipe trains. Its tokens need not be there yet."""
    model = given(recipe, "model")
    if model.checkpoint:
        return shapes(model.checkpoint, dtype="float32").config
    there = Path(recipe.tokens or "none").exists()
    tokenizer = open_tokens(recipe.tokens).tokenizer if there else None
    return _config(model.config, model.fields, tokenizer)


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


def _padded_params(config: Config, mesh: jax.sharding.Mesh | None, seed: int) -> Params:
    """Random weights, with the zeros that the mesh needs."""
    params = init_params(jax.random.key(seed), config)
    if mesh is None:
        return params
    shardings = weight_shardings(config, mesh)

    def padded(path: Any, weight: Any) -> Any:
        sharding = shardings[tuple(key.key for key in path)]
        shape = padded_shape(weight.shape, sharding)
        return jnp.pad(weight, [(0, n - m) for n, m in zip(shape, weight.shape, strict=True)])

    return params.replace(weights=jax.tree_util.tree_map_with_path(padded, params.weights))


def _shardings(config: Config, mesh: jax.sharding.Mesh | None) -> Params:
    if mesh is None:
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        return Params(nested(dict.fromkeys(weight_table(config), here)), config)
    return Params(nested(weight_shardings(config, mesh)), config)
