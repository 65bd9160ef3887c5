"""One training step, as the LLaMA paper states it (arXiv:2302.13971, section 2.2 to 2.4).

    loss        mean cross-entropy of the next token, in float32
    gradients   summed over micro-batches, divided once by the number of trained tokens
    clip        to a norm of 1
    AdamW       beta 0.9 and 0.95, decay 0.1 of matrices, a learning rate with warm-up and cosine

The weights and moments are float32; activations and products are bfloat16 where the recipe says.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float32

from llama_jax.jax_settings import AS_TRACED, as_written
from llama_jax.kernels import COMPILER_OPTIONS
from llama_jax.model.cache import Packed, Uncached
from llama_jax.ops.norm import rms_norm
from llama_jax.sharding.arrays import constrain_weights, use_mesh_of
from llama_jax.train.layers import residual_stream
from llama_jax.train.loss import cross_entropy
from llama_jax.train.optimizer import direction, learning_rate
from llama_jax.train.recipe import Recipe, Step
from llama_jax.train.rows import Batch
from llama_jax.train.state import TrainState, with_frozen, without_frozen
from llama_jax.train.trained import Trained, constrain_trained, joined, split
from llama_jax.weights.lora import Lora
from llama_jax.weights.params import Params, weight_at
from llama_jax.weights.table import EMBEDDING, NORM, OUTPUT
from llama_jax.weights.weight import is_value

_jit = functools.partial(jax.jit, donate_argnums=0, compiler_options=COMPILER_OPTIONS)


class Metrics(NamedTuple):
    """What a step says of itself. Scalars."""

    loss: Float32[Array, ""]
    """The mean loss of the trained tokens, in nats, z-loss included."""
    gradient_norm: Float32[Array, ""]
    """Before clipping."""
    learning_rate: Float32[Array, ""]
    tokens: Float32[Array, ""]
    """The sum of the tokens' weights: how many were trained on."""
    good: Bool[Array, ""]
    """Whether the step changed the weights."""


@as_written(AS_TRACED)
def train_step(r: Recipe, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    """The state after one more step, and what it says of itself.

    A step whose loss or gradients are not finite, or whose gradients' norm is a spike, changes
    neither weights nor moments. It counts as a step all the same.
    """
    with use_mesh_of(state.params.weights):
        loss, gradients = loss_and_gradients(r.step, state.params, batch)
        norm = optax.tree.norm(gradients)
        rate = learning_rate(r, state.step)
        gradients = _clipped(gradients, norm, r.optimizer.clip)
        trained, frozen = split(state.params)
        optimizer = direction(r.optimizer, trained)
        updates, moments = optimizer.update(gradients, state.moments, trained)
        trained = jax.tree.map(lambda w, update: w + rate * update, trained, updates)
        good = jnp.isfinite(loss) & jnp.isfinite(norm) & ~_is_spike(r.step, norm, state.norm)
        after = TrainState(
            step=state.step + 1,
            params=joined(trained, frozen),
            moments=moments,
            average=_averaged(r.step, state.average, trained),
            norm=jnp.where(state.norm == 0, norm, 0.99 * state.norm + 0.01 * norm),
            left_out=state.left_out,
            left_out_in_a_row=jnp.zeros_like(state.left_out_in_a_row),
        )
        after = _chosen(good, after, _left_out(state))
    return after, Metrics(loss, norm, rate, jnp.sum(batch.weights), good)


def jitted_step(recipe: Recipe) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """`train_step` of a recipe, compiled. The given state is donated to the new one.

    Frozen weights are not: they stay where they are, and each state shares them.
    """
    if recipe.lora is None:
        return _jit(functools.partial(train_step, recipe))

    @_jit
    def compiled(state: TrainState, frozen: Params, batch: Batch) -> tuple[TrainState, Metrics]:
        after, metrics = train_step(recipe, with_frozen(state, frozen), batch)
        return without_frozen(after), metrics

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        _, frozen = split(state.params)
        after, metrics = compiled(without_frozen(state), frozen, batch)
        return with_frozen(after, frozen), metrics

    return step


@as_written(AS_TRACED)
def loss_and_gradients(s: Step, params: Params, batch: Batch) -> tuple[Array, Trained]:
    """The mean loss of a batch's trained tokens, and its gradient, in float32.

    The gradient is of the weights, or of a model's adapters alone, where it has any.

    Losses and gradients are summed over the micro-batches and divided once. So micro-batches with
    few trained tokens count as little as they should.
    """
    trained, frozen = split(params)

    def loss_of(trained: Trained, batch: Batch) -> Array:
        return loss_sum(s, joined(trained, frozen), batch)

    gradient = jax.value_and_grad(loss_of)
    if s.micro_batches == 1:
        total, gradients = gradient(trained, batch)
    else:

        def add(sums: Any, part: Batch) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, sums, gradient(trained, part)), None

        zeros = constrain_trained(params.config, jax.tree.map(jnp.zeros_like, trained))
        sums = (jnp.zeros((), jnp.float32), zeros)
        total, gradients = jax.lax.scan(add, sums, _micro_batches(batch, s.micro_batches))[0]
    tokens = jnp.sum(batch.weights)
    return total / tokens, _scaled(constrain_trained(params.config, gradients), 1 / tokens)


def loss_sum(s: Step, params: Params, batch: Batch) -> Float32[Array, ""]:
    """The sum of the trained tokens' losses."""
    c = params.config
    w = jax.tree.map(lambda w: _narrow(w, s.dtype), params.weights, is_leaf=is_value)
    # Cut as the table says: otherwise XLA gathers every layer's weights over fsdp before the first.
    w = constrain_weights(params.replace(weights=w)).weights
    past = Packed() if s.documents == "separate" else Uncached()
    # The output weight as it is, in float32: its gradient is summed over the tokens in float32.
    path, over = (EMBEDDING, 1) if c.tie_embeddings else (OUTPUT, 0)
    output = weight_at(params.weights, path)
    x, output = residual_stream(s.remat, c, w, batch.tokens, batch.positions, past, output)
    x = rms_norm(x, weight_at(w, NORM), c.norm_eps)
    output = output.dense() if is_value(output) else output
    return cross_entropy(c.vocab_size, over, s.z_loss, x, output, batch.targets, batch.weights)


@as_written(AS_TRACED)
def evaluate(s: Step, params: Params, batch: Batch) -> tuple[Float32[Array, ""], Array]:
    """The sum of the tokens' losses, without z-loss, and how many tokens there are."""
    step = dataclasses.replace(s, remat="none", z_loss=0.0)
    with use_mesh_of(params.weights):
        return loss_sum(step, params, batch), jnp.sum(batch.weights)


def _narrow(weight: Any, dtype: str) -> Any:
    if isinstance(weight, Lora):
        return dataclasses.replace(weight, base=_narrow(weight.base, dtype))
    return weight if is_value(weight) else weight.astype(dtype)


def _micro_batches(batch: Batch, parts: int) -> Batch:
    """[batch, time] as [parts, batch / parts, time], of which each row stays on its device."""

    def split(x: Array) -> Array:
        return x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)

    return jax.tree.map(split, batch)


def _scaled(tree: Any, factor: Array) -> Any:
    return jax.tree.map(lambda x: x * factor, tree)


def _clipped(gradients: Trained, norm: Array, largest: float) -> Trained:
    """Scaled down to a norm of at most `largest`; 0 leaves them alone."""
    return _scaled(gradients, largest / jnp.maximum(norm, largest)) if largest else gradients


def _is_spike(s: Step, norm: Array, mean: Array) -> Array:
    return (norm > s.spike * mean) & (mean > 0) if s.spike else jnp.zeros((), bool)


def _averaged(s: Step, average: Trained | None, trained: Trained) -> Trained | None:
    if average is None:
        return None
    return jax.tree.map(lambda old, new: s.average * old + (1 - s.average) * new, average, trained)


def _left_out(state: TrainState) -> TrainState:
    """The state after a step that changes nothing but the counts."""
    return dataclasses.replace(
        state,
        step=state.step + 1,
        left_out=state.left_out + 1,
        left_out_in_a_row=state.left_out_in_a_row + 1,
    )


def _chosen(good: Array, after: TrainState, before: TrainState) -> TrainState:
    """One state or the other. Not by a product with 0, because 0 times NaN is NaN."""
    return jax.tree.map(lambda new, old: jnp.where(good, new, old), after, before)
