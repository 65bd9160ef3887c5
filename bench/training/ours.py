"""This project as a contestant: its own step, in a loop as docs/guides/train.md shows one."""

from __future__ import annotations

import time
from typing import Any

import jax

import llama_jax
from bench.training.work import Work, recipe_of
from llama_jax.train.batches import batch_sharding, evaluation_batches, training_batches
from llama_jax.train.rows import TextRows
from llama_jax.train.state import new_state
from llama_jax.train.step import evaluate, jitted_step
from llama_jax.train.token_folder import open_tokens


class Training:
    """A model in training."""

    def __init__(self, work: Work, folder: str, steps: int) -> None:
        recipe = recipe_of(work, steps)
        tokens = open_tokens(f"{folder}/tokens")
        rows = TextRows(tokens.train, work.time, "joined")
        self._sharding, self._recipe = batch_sharding(None, work.batch), recipe
        self._validation = None
        if tokens.validation is not None:
            self._validation = TextRows(tokens.validation, work.time, "joined")
        self._state = new_state(recipe, llama_jax.load(f"{folder}/native", dtype="float32"))
        self._step = jitted_step(recipe)
        self._batches = training_batches(rows, rows.order(work.batch, seed=0), self._sharding)
        self._evaluate = jax.jit(evaluate, static_argnums=0)

    def train(self, steps: int) -> tuple[float, list[float]]:
        """Seconds of so many steps, and each one's loss."""
        begin, found = time.perf_counter(), []
        for _ in range(steps):
            self._state, metrics = self._step(self._state, next(self._batches))
            found.append(metrics.loss)
        losses = [float(loss) for loss in found]
        jax.block_until_ready(self._state)
        return time.perf_counter() - begin, losses

    def validation(self) -> float:
        """The mean loss of all validation tokens."""
        total = count = 0.0
        batch: Any
        for batch in evaluation_batches(self._validation, self._recipe.step.batch, self._sharding):
            loss, tokens = self._evaluate(self._recipe.step, self._state.params, batch)
            total, count = total + float(loss), count + float(tokens)
        return total / count
