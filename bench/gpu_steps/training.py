"""A training step: tokens in a second, part of the matrix rate, its memory beside the plan's."""

from __future__ import annotations

import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bench.gpu_steps.memory import memory_stats
from bench.gpu_steps.models import config_of, random_ids, random_params
from bench.gpu_steps.telling import Telling
from bench.gpu_steps.timing import timed
from llama_jax.config import Config
from llama_jax.train.plan import plan
from llama_jax.train.recipe import Optimizer, Recipe, Step
from llama_jax.train.report import flops_per_token
from llama_jax.train.rows import Batch
from llama_jax.train.state import new_state
from llama_jax.train.step import jitted_step

ROWS, CONTEXT = 8, 2048
TOY_ROWS, TOY_CONTEXT = 2, 64
REMAT = ("dots", "layer")
"""What the backward pass computes again: the faster first. `none` of 1B does not fit 80 GB beside
its state in float32."""


def run(telling: Telling, model: str) -> None:
    """Tells a step's time and memory for each way to remember activations."""
    config = config_of(model, dry=telling.dry)
    rows, context = (TOY_ROWS, TOY_CONTEXT) if telling.dry else (ROWS, CONTEXT)
    for remat in REMAT:
        name = f"{rows} x {context} {remat}"
        with telling.part(name):
            _case(telling, name, config, _recipe(rows, context, remat))


def _recipe(rows: int, context: int, remat: Any) -> Recipe:
    step = Step(batch=rows, context=context, remat=remat, documents="joined", dtype="bfloat16")
    return Recipe(steps=1000, optimizer=Optimizer(warmup=10), step=step)


def _case(telling: Telling, name: str, config: Config, recipe: Recipe) -> None:
    training = _Training(config, recipe)
    start = time.perf_counter()
    training.compile()
    compile_s = time.perf_counter() - start
    times = timed(training.run, repeats=5, warm=2, before=training.renew)
    tokens = recipe.step.batch * recipe.step.context
    telling.tell(
        name,
        {
            "ms": {of: 1e3 * seconds for of, seconds in times.items()},
            "tokens/s": tokens / times["median"],
            "flop/s": flops_per_token(config, recipe.step.context) * tokens / times["median"],
            "loss": training.loss,
            "compile_s": round(compile_s, 1),
            "temporaries": training.program.memory_analysis().temp_size_in_bytes,
            "memory": {**memory_stats(), "predicted": plan(recipe, config).total},
        },
    )


class _Training:
    """A run of one recipe on random tokens. Host state: a step hands its state on."""

    def __init__(self, config: Config, recipe: Recipe) -> None:
        self.config, self.recipe = config, recipe
        self.rng = np.random.default_rng(time.time_ns())
        params = random_params(config, jnp.float32, seed=time.time_ns() % 2**31)
        self.state = new_state(recipe, params)
        self.batch: Batch = self.made()
        self.program: Any = None
        self.loss = float("nan")

    def compile(self) -> None:
        """Compiles the step."""
        step = functools.partial(jitted_step(self.recipe).lower, self.state, self.batch)
        self.program = step().compile()

    def made(self) -> Batch:
        """A batch of random tokens on the device, all of them trained."""
        s = self.recipe.step
        ids = random_ids(self.rng, self.config, s.batch, s.context + 1)
        positions = np.tile(np.arange(s.context, dtype=np.int32), (s.batch, 1))
        weights = np.ones((s.batch, s.context), np.float32)
        return jax.device_put(Batch(ids[:, :-1], ids[:, 1:], positions, weights))

    def renew(self) -> None:
        """Other tokens for the next step."""
        self.batch = jax.block_until_ready(self.made())

    def run(self) -> None:
        """One step, and waits for its loss."""
        self.state, metrics = self.program(self.state, self.batch)
        self.loss = float(metrics.loss)
