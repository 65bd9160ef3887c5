"""A run: batches into steps, states to disk, and what a person sees of it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable

import jax
import numpy as np

from llama_jax.sharding.arrays import mesh_of
from llama_jax.train.batches import batch_sharding, evaluation_batches, numbered_batches
from llama_jax.train.order import Order
from llama_jax.train.recipe import Recipe
from llama_jax.train.report import Evaluated, Report, shown_rows
from llama_jax.train.rows import Rows
from llama_jax.train.saves import Saves
from llama_jax.train.state import TrainState, result, without_frozen
from llama_jax.train.step import Metrics, evaluate, jitted_step
from llama_jax.train.stops import stop_signals

_Taken = tuple[int, np.ndarray, Metrics]
"""A step: its number from 0, the ids of its rows, what it found."""


@dataclasses.dataclass(frozen=True)
class Data:
    """What a run reads."""

    rows: Rows
    order: Order
    validation: Rows | None
    bytes_per_token: float | None
    """UTF-8 bytes of the text for each token, to tell the loss of steps in bits per byte."""
    validation_bytes_per_token: float | None
    """The same of the validation text, for evaluations."""


def run_steps(
    recipe: Recipe,
    state: TrainState,
    data: Data,
    saves: Saves,
    report: Report,
    *,
    on_save: Callable[[TrainState], None],
    on_sample: Callable[[TrainState], None],
) -> TrainState:
    """Trains from `state` to the recipe's last step, or until the process is asked to stop.

    RuntimeError after `run.bad_steps` steps in a row that changed nothing. The state is saved every
    `run.save_every` steps, at the end, and when SIGTERM or Ctrl-C asks to stop.
    """
    step, first = jitted_step(recipe), int(state.step)
    sharding = batch_sharding(mesh_of(state.params), recipe.step.batch)
    batches = numbered_batches(data.rows, data.order, sharding, step=first)
    run = _Run(recipe, data, saves, report, on_save, on_sample)
    index = first
    with stop_signals(report.stopping) as stops, contextlib.closing(batches):
        while index < recipe.steps:
            ids, batch = next(batches)
            with report.phase("compiling the step") if index == first else contextlib.nullcontext():
                state, metrics = step(state, batch)
            run.say()
            run.waiting.append((index, ids, metrics))
            index += 1
            if stops():
                break
            if index < recipe.steps:
                run.between_steps(state, index)
        if index > first:
            run.save(state)
        elif report.keeps_newest:  # a process may have ended between the state and the model
            on_save(state)
        if index == recipe.steps:
            run.evaluate(state, index)
            if recipe.run.sample_every:
                run.sample(state)
    with report.phase("writing the last state"):
        saves.wait()
    return state


@dataclasses.dataclass(frozen=True)
class _Run:
    """What happens beside the steps."""

    recipe: Recipe
    data: Data
    saves: Saves
    report: Report
    on_save: Callable[[TrainState], None]
    on_sample: Callable[[TrainState], None]
    waiting: list[_Taken] = dataclasses.field(default_factory=list)
    """Said one step later, while the next one runs."""

    def between_steps(self, state: TrainState, index: int) -> None:
        """Evaluates, samples and saves, each at its own number of steps."""
        r = self.recipe.run
        if r.evaluate_every and index % r.evaluate_every == 0:
            self.evaluate(state, index)
        if r.sample_every and index % r.sample_every == 0:
            self.sample(state)
        if r.save_every and index % r.save_every == 0:
            self.save(state)

    def say(self) -> None:
        """Tells of the steps whose metrics wait. RuntimeError where too many were bad."""
        while self.waiting:
            index, ids, metrics = self.waiting.pop(0)
            self.report.step(index, ids, jax.device_get(metrics))
            _check_steps(self.recipe, self.report, index, ids)

    def save(self, state: TrainState) -> None:
        """Saves the state, and the model where a run keeps the newest."""
        self.say()
        with self.report.phase("saving"):
            self.saves.save(without_frozen(state))
            if self.report.keeps_newest:
                self.on_save(state)
        self.report.paused()

    def sample(self, state: TrainState) -> None:
        """Draws completions of the recipe's prompts."""
        self.say()
        with self.report.phase("writing samples"):
            self.on_sample(state)
        self.report.paused()

    def evaluate(self, state: TrainState, index: int) -> None:
        """Tells the validation loss, and keeps the model where it is the best."""
        self.say()
        with self.report.phase("evaluating"):
            found = evaluated(self.recipe, state, self.data)
        if self.report.evaluated(index, found):
            self.on_save(state)


def evaluated(recipe: Recipe, state: TrainState, data: Data) -> Evaluated | None:
    """The loss of the validation split, or of the recipe's number of its batches."""
    if data.validation is None:
        return None
    params = result(state)
    batches = evaluation_batches(
        data.validation, recipe.step.batch, batch_sharding(mesh_of(params), recipe.step.batch)
    )
    total = tokens = 0.0
    with contextlib.closing(batches):
        for index, batch in enumerate(batches):
            if index == recipe.run.evaluate_batches > 0:
                break
            loss, count = _evaluate(recipe.step, params, batch)
            total, tokens = total + float(loss), tokens + float(count)
    return Evaluated(total / tokens, int(tokens), data.validation_bytes_per_token)


_evaluate = jax.jit(evaluate, static_argnums=0)


def _check_steps(recipe: Recipe, report: Report, index: int, ids: np.ndarray) -> None:
    """Says a bad step's rows; RuntimeError where too many came in a row."""
    if report.bad_in_a_row and report.bad_in_a_row >= recipe.run.bad_steps:
        raise RuntimeError(
            f"{report.bad_in_a_row} steps in a row had a loss or gradients that are not finite, or "
            f"were spikes; the last, step {index + 1:,}, read rows {shown_rows(ids)}. Lower "
            "optimizer.learning_rate, or look at those rows"
        )
