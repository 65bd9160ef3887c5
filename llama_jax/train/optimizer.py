"""The schedule of the learning rate, and what makes an update of gradients."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float32, Int32

from llama_jax.train.recipe import Optimizer, Recipe


def learning_rate(recipe: Recipe, step: Int32[Array, ""]) -> Float32[Array, ""]:
    """The learning rate of a step, counted from 0.

    With 1,000 steps, a warm-up of 100 and a cosine: step 0 has 1/100 of the largest, step 99 all
    of it, step 999 `floor` of it.
    """
    o, last = recipe.optimizer, recipe.steps - 1
    rising = (step + 1) / max(o.warmup, 1)
    if o.schedule == "cosine":
        part = (step + 1 - o.warmup) / (last + 1 - o.warmup)
        falling = o.floor + (1 - o.floor) * 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(part, 0, 1)))
    elif o.schedule == "wsd":
        decay_steps = max(1, round(o.decay * recipe.steps))
        part = (step - last) / decay_steps + 1
        falling = 1 - (1 - o.floor) * jnp.clip(part, 0, 1)
    else:
        falling = jnp.ones(())
    return (o.learning_rate * jnp.minimum(rising, falling)).astype(jnp.float32)


def direction(o: Optimizer, weights: Any) -> optax.GradientTransformation:
    """Gradients to updates for a learning rate of 1, decay included.

    `weights` are arrays or their shapes. Matrices decay; Muon takes the matrices of layers.
    """
    is_matrix = jax.tree.map(lambda w: w.ndim >= 2, weights)
    decay = {"weight_decay": o.weight_decay, "mask": is_matrix}
    adamw = optax.adamw(1.0, b1=o.beta1, b2=o.beta2, eps=o.epsilon, **decay)
    if o.kind == "adamw":
        return adamw
    muon = optax.chain(
        optax.contrib.scale_by_muon(beta=o.beta2, weight_dimension_numbers=_axes),
        optax.stateless(lambda updates, _: jax.tree.map(_as_large_as_adamws, updates)),
        optax.add_decayed_weights(o.weight_decay),
        optax.scale(-1.0),
    )
    return optax.partition({"adamw": adamw, "muon": muon}, _kinds(weights))


def _kinds(weights: Any) -> Any:
    """Which optimizer takes each weight."""

    def one(path: Any, weight: Any) -> str:
        in_layer = any("layers_" in str(key) for key in path)
        return "muon" if in_layer and weight.ndim == 2 else "adamw"

    return jax.tree_util.tree_map_with_path(one, weights)


def _axes(weights: Any) -> Any:
    """Each weight is a matrix, [in, out]."""
    return jax.tree.map(lambda _: optax.contrib.MuonDimensionNumbers(), weights)


def _as_large_as_adamws(update: Array) -> Array:
    """An orthogonal matrix with a root mean square of 0.2, so that one learning rate serves both
    (arXiv:2502.16982, 2.2)."""
    return update * (0.2 * max(update.shape) ** 0.5)
