"""Single steps of a tiny model: their recipe, their batch, and what comes of some of them."""

import jax
import jax.numpy as jnp
import numpy as np

from llama_jax.model.transformer import init_params
from llama_jax.sharding.arrays import shard_params
from llama_jax.train.recipe import Optimizer, Recipe, Step
from llama_jax.train.rows import Batch
from llama_jax.train.state import new_state
from llama_jax.train.step import jitted_step

ROWS, TIME = 8, 24


def recipe_of(optimizer=None, steps=100, **step):
    step = {"batch": ROWS, "context": TIME, "dtype": "float32", "remat": "none"} | step
    optimizer = {"warmup": 2, "learning_rate": 1e-2} | (optimizer or {})
    return Recipe(steps=steps, optimizer=Optimizer(**optimizer), step=Step(**step))


def batch_of(config, step=0, document=11):
    draw = np.random.default_rng(step)
    ids = draw.integers(0, config.vocab_size, (ROWS, TIME + 1)).astype(np.int32)
    positions = np.broadcast_to(np.arange(TIME) % document, (ROWS, TIME)).astype(np.int32)
    # From none to all of a row's tokens are trained on: micro-batches differ in their counts.
    weights = (np.arange(TIME) < 3 * np.arange(1, ROWS + 1)[:, None]).astype(np.float32)
    return jax.tree.map(jnp.asarray, Batch(ids[:, :-1], ids[:, 1:], positions, weights))


def trained(config, recipe, steps=3, mesh=None):
    params = init_params(jax.random.key(0), config)
    state = new_state(recipe, shard_params(params, mesh) if mesh else params)
    step, losses = jitted_step(recipe), []
    for i in range(steps):
        state, metrics = step(state, batch_of(config, i))
        losses.append(float(metrics.loss))
    return state, losses


def close(a, b, tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=tolerance), a, b)
