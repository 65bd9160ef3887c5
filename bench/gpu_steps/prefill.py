"""Reading prompts: what part of the matrix rate that is, and the memory that it takes."""

from __future__ import annotations

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np

from bench.gpu_steps.compiling import made_together
from bench.gpu_steps.memory import memory_stats
from bench.gpu_steps.models import config_of, greedy_rows, random_ids, random_params
from bench.gpu_steps.telling import Telling
from bench.gpu_steps.timing import timed
from bench.gpu_steps.trace import summary, traced
from bench.shapes import prefill_flops
from llama_jax.generation import driver
from llama_jax.generation.batch import batches_of
from llama_jax.generation.placement import Placement
from llama_jax.model.memory import memory
from llama_jax.weights.params import Params

LENGTHS, TOY_LENGTHS = (512, 2048, 16384), (40, 300)
"""Of one prompt. The shortest come first, so that the peak of memory is the newest's."""


def run(telling: Telling, model: str) -> None:
    """Tells the time of each length, and then where it goes."""
    config = config_of(model, dry=telling.dry)
    params = random_params(config, jnp.bfloat16, seed=time.time_ns() % 2**31)
    telling.tell("loaded", memory_stats())
    lengths, start = TOY_LENGTHS if telling.dry else LENGTHS, time.perf_counter()
    makers = {length: functools.partial(_Reading, params, length) for length in lengths}
    readings = made_together({f"{length} tokens": make for length, make in makers.items()})
    telling.tell("compile_s of all", round(time.perf_counter() - start, 1))
    for length in lengths:
        with telling.part(f"{length} tokens"):
            _case(telling, readings.pop(f"{length} tokens").result(), length)


def _case(telling: Telling, reading: _Reading, length: int) -> None:
    config = reading.params.config
    times = timed(reading.run, repeats=7, warm=2, before=reading.renew)
    asked = prefill_flops(config, length)
    telling.tell(
        f"{length} tokens",
        {
            "ms": {of: 1e3 * seconds for of, seconds in times.items()},
            "tokens/s": length / times["median"],
            "flop/s": asked / times["median"],
            "tokens read at once": reading.width,
            "flop/s of all that is read": prefill_flops(config, reading.width) / times["median"],
            "slots": reading.batch.slots,
            "temporaries": reading.program.memory_analysis().temp_size_in_bytes,
            "memory": {**memory_stats(), "predicted": reading.predicted()},
        },
    )
    with telling.part(f"{length} tokens trace"):
        reading.renew()
        kernels = traced(reading.run, telling.scratch / "trace")
        telling.tell(f"{length} tokens trace", summary(kernels, 1))


class _Reading:
    """The program that reads one prompt, as `generate` has it compiled. Host state."""

    def __init__(self, params: Params, length: int) -> None:
        self.params, self.rng = params, np.random.default_rng(time.time_ns() + length)
        self.place = Placement.of(params)
        rows = greedy_rows(params.config, self.rng, 1, length)
        (self.batch,) = batches_of(params.config, self.place, rows)
        self.given = driver.prefill_of(params, self.place, self.batch)
        self.program = self.given.compiled()
        self.width = self.given.tokens_per_read

    def renew(self) -> None:
        """Another random prompt of the same length."""
        texts = random_ids(self.rng, self.params.config, *self.given.texts.shape)
        self.given = self.given._replace(texts=texts)

    def run(self) -> None:
        """Reads it, and waits for the first new token."""
        *arguments, _ = self.given
        jax.block_until_ready(self.program(*arguments))

    def predicted(self) -> int:
        """The bytes that `memory` predicts for weights and cache."""
        asked = {"dtype": self.params.dtype, "cache_dtype": self.place.cache_dtype}
        config, slots = self.params.config, self.batch.slots
        return memory(config, batch=1, context=slots, **asked).per_device
