"""Decoding: tokens in a second, what part of the bandwidth that is, and where the time goes."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bench.gpu_steps.compiling import made_together
from bench.gpu_steps.memory import memory_stats
from bench.gpu_steps.models import Decoding, config_of, random_params
from bench.gpu_steps.telling import Telling
from bench.gpu_steps.timing import timed
from bench.gpu_steps.trace import summary, traced
from llama_jax.generation import driver
from llama_jax.generation.limits import ROUND_TOKENS
from llama_jax.model.memory import memory
from llama_jax.weights.params import Params, weight_at
from llama_jax.weights.quantize import quantize
from llama_jax.weights.table import EMBEDDING

CASES = (1, 512), (8, 8192), (8, 512), (1, 8192)
"""Rows, and the slots of each that are in use: those that tell most come first."""
TOY_CASES = (1, 40), (2, 300)
STEPS, TOY_STEPS, TRACED = 64, 16, 16
ENOUGH = 30.0
"""Seconds that must be left for the second pair of cases."""


def run(telling: Telling, model: str, kinds: Sequence[str] = ()) -> None:
    """Tells each case's rate, and then where its time goes; with `kinds`, of quantized weights."""
    config = config_of(model, dry=telling.dry)
    params = random_params(config, jnp.bfloat16, seed=time.time_ns() % 2**31)
    for kind in kinds:
        with telling.part(kind):
            quantized = jax.block_until_ready(quantize(params, kind))
            _cases(telling, quantized, TOY_CASES[:1] if telling.dry else CASES[:1], f"{kind} ")
            del quantized
    if kinds:
        return
    telling.tell("weights bytes", _weight_bytes(params))
    telling.tell("loaded", memory_stats())
    if telling.dry:
        _cases(telling, params, TOY_CASES)
        return
    _cases(telling, params, CASES[:2])
    if telling.left < ENOUGH:
        telling.tell("left out", f"{CASES[2:]}")
        return
    _cases(telling, params, CASES[2:])


def _cases(
    telling: Telling, params: Params, cases: Sequence[tuple[int, int]], kind: str = ""
) -> None:
    """Compiles the programs of some cases together, and then measures one after the other."""
    start = time.perf_counter()
    makers = {
        f"{kind}{rows} x {used}": functools.partial(_Loop, params, rows, used)
        for rows, used in cases
    }
    loops = made_together(makers)
    names = ", ".join(loops)
    telling.tell(f"compile_s of {names}", round(time.perf_counter() - start, 1))
    for name in list(loops):
        with telling.part(name):
            _case(telling, name, loops.pop(name).result())


def _case(telling: Telling, name: str, loop: _Loop) -> None:
    steps = TOY_STEPS if telling.dry else STEPS
    decoding, rows, used = loop.decoding, loop.decoding.rows, loop.decoding.used
    times = timed(functools.partial(loop.run, steps), repeats=5, before=loop.begin)
    tokens = {of: rows * steps / times[of] for of in times}
    read = step_bytes(decoding.params, rows, used + steps / 2)
    telling.tell(
        name,
        {
            "step_ms": {of: 1e3 * seconds / steps for of, seconds in times.items()},
            "tokens/s": tokens["median"],
            "tokens/s least, most": [tokens["max"], tokens["min"]],
            "bytes a step": read,
            "bytes/s": read * steps / times["median"],
            "slots": decoding.slots,
            "temporaries": loop.program.memory_analysis().temp_size_in_bytes,
            "memory": {**memory_stats(), "predicted": _predicted(rows, decoding)},
        },
    )
    with telling.part(f"{name} trace"):
        count = min(TRACED, steps)
        loop.begin()
        kernels = traced(functools.partial(loop.run, count), telling.scratch / "trace")
        telling.tell(f"{name} trace", summary(kernels, count))


def compiled(decoding: Decoding) -> Any:
    """The program that decodes these rows, as `generate` has it compiled."""
    taken, until = np.zeros(decoding.rows, np.int32), np.int32(ROUND_TOKENS)
    state = jax.eval_shape(decoding.begun)
    check = decoding.place.limits.tokens_per_check
    given = (decoding.params, state, decoding.settings, taken, until)
    return driver.decode.lower(*given, tokens_per_check=check).compile()


class _Loop:
    """The loop, from the same place again at each run. Host state: it hands its cache on."""

    def __init__(self, params: Params, rows: int, used: int) -> None:
        rng = np.random.default_rng(time.time_ns() + rows * used)
        self.decoding = Decoding(params, rows, used, rng)
        self.program = compiled(self.decoding)
        self.state: Any = None
        self.cache: Any = None
        self.taken = np.zeros(rows, np.int32)

    def begin(self) -> None:
        """Makes the state to run from, of the cache of the last run."""
        self.state = jax.block_until_ready(self.decoding.begun(self.cache))

    def run(self, steps: int) -> None:
        """Decodes so many tokens of each row, and waits for them."""
        given = self.decoding.params, self.state, self.decoding.settings
        self.state = self.cache = None
        done = self.program(*given, self.taken, np.int32(steps + 1))
        self.cache = done.cache
        if (counts := set(np.asarray(done.buffer.count).tolist())) != {steps + 1}:
            raise ValueError(f"the rows have {counts} tokens, not {steps + 1}")


def step_bytes(params: Params, rows: int, used: float) -> int:
    """What one step must read: the weights, and the used slots of each row's cache."""
    config = params.config
    a_slot = 2 * config.n_layers * config.n_kv_heads * config.head_dim
    looked_up = 0 if config.tie_embeddings else weight_at(params.weights, EMBEDDING).nbytes
    return int(_weight_bytes(params) - looked_up + 2 * rows * used * a_slot)


def _weight_bytes(params: Params) -> int:
    return sum(x.nbytes for x in jax.tree.leaves(params.weights))


def _predicted(rows: int, decoding: Decoding) -> int:
    asked = {"dtype": jnp.bfloat16, "cache_dtype": decoding.place.cache_dtype}
    found = memory(decoding.params.config, batch=rows, context=decoding.slots, **asked)
    return _weight_bytes(decoding.params) + found.cache_per_device
