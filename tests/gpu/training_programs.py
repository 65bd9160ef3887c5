"""Training steps to be compiled, made from shapes alone."""

import jax
import jax.numpy as jnp
from programs import mesh_of, nbytes, params_of

from llama_jax.train.batches import batch_sharding
from llama_jax.train.recipe import Mesh, Optimizer, Recipe, Step
from llama_jax.train.rows import Batch
from llama_jax.train.state import state_shapes
from llama_jax.train.step import jitted_step


def training_recipe(time, axes=None, **step):
    step = {"batch": 8, "context": time, "documents": "joined"} | step
    return Recipe(steps=10_000, step=Step(**step), optimizer=Optimizer(), mesh=Mesh(**(axes or {})))


def lowered_step(devices, config, recipe):
    """A step of a recipe on its mesh, and the bytes of its state on each device."""
    mesh = mesh_of(devices, **vars(recipe.mesh))
    state = state_shapes(recipe, params_of(config, mesh))
    shape = recipe.step.batch, recipe.step.context
    lies = batch_sharding(mesh, recipe.step.batch)
    ids = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=lies)
    weights = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=lies)
    with jax.set_mesh(mesh):
        lowered = jitted_step(recipe).lower(state, Batch(ids, ids, ids, weights))
    return lowered, nbytes(state, of_a_device=True)
