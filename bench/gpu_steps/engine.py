"""The engine: tokens written in a second for many requests, and when the first one comes."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import jax.numpy as jnp
import numpy as np

from bench.gpu_steps.memory import memory_stats
from bench.gpu_steps.models import config_of, random_ids, random_params
from bench.gpu_steps.telling import Telling
from llama_jax.serve.engine import Engine
from llama_jax.serve.stream import Stream

CASES = (256, 256, 256), (128, 512, 128)
"""Requests at once, tokens of each prompt, and new tokens of each. vLLM was measured so in 2024."""
TOY_CASES = ((6, 20, 12),)
CONTEXT = 2048
PATIENCE = 0.02
"""Seconds between two looks at whether the engine is ready."""


def run(telling: Telling, model: str) -> None:
    """Tells the rate of each case: all requests are asked for at once."""
    config = config_of(model, dry=telling.dry).replace(max_seq_len=CONTEXT)
    params = random_params(config, jnp.bfloat16, seed=time.time_ns() % 2**31)
    rng, start = np.random.default_rng(time.time_ns()), time.perf_counter()
    rows = 4 if telling.dry else None
    with Engine(params, rows=rows, share_prefixes=False, max_queued=1024) as engine:
        while engine.compiling and engine.failure is None:
            time.sleep(PATIENCE)
        telling.tell("compile_s", round(time.perf_counter() - start, 1))
        telling.tell("pages", engine.stats().pages)
        for case in TOY_CASES if telling.dry else CASES:
            name = "{} x {} + {}".format(*case)
            with telling.part(name):
                telling.tell(name, _case(engine, rng, *case))


def _case(engine: Engine, rng: Any, requests: int, length: int, new: int) -> dict[str, Any]:
    """Every request is greedy and does not stop. The first, which is alone, warms up."""
    prompts = random_ids(rng, engine.config, requests + 1, length).tolist()
    asked = {"temperature": 0.0, "max_new_tokens": new, "stop_ids": ()}
    engine.submit(prompts.pop(), **asked).completions()
    before, start = engine.stats().preemptions, time.perf_counter()

    async def taken(stream: Stream) -> tuple[float, int]:
        """When its first token came, and how many there were."""
        first, count = float("nan"), 0
        async for delta in stream:
            first = first if count else time.perf_counter() - start
            count += len(delta.tokens)
        return first, count

    async def all_taken() -> list[tuple[float, int]]:
        return await asyncio.gather(*[taken(engine.submit(prompt, **asked)) for prompt in prompts])

    firsts, counts = zip(*asyncio.run(all_taken()), strict=True)
    seconds = time.perf_counter() - start
    if set(counts) != {new}:
        raise ValueError(f"requests of {new} new tokens got {sorted(set(counts))}")
    return {
        "seconds": seconds,
        "tokens/s": sum(counts) / seconds,
        "first token s": {"median": float(np.median(firsts)), "max": max(firsts)},
        "preemptions": engine.stats().preemptions - before,
        "memory": memory_stats(),
    }
