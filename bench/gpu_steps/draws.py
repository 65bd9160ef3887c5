"""Tokens that must not depend on the device, nor, in float32, on the company."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

import llama_jax
from bench.gpu_steps.golden import GOLDEN
from bench.gpu_steps.telling import Telling
from llama_jax.generation.settings import SamplingSettings

MODEL, NEW, ROWS = GOLDEN / "meta" / "llama3", 40, 8
ASKED: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "drawn": {"temperature": 1.0},
    "top-p": {"temperature": 0.8, "top_p": 0.9},
    "top-k": {"temperature": 1.2, "top_k": 5},
    "min-p": {"temperature": 1.5, "min_p": 0.1},
    "penalties": {"temperature": 0.7, "repetition_penalty": 1.2, "frequency_penalty": 0.5},
    "bias": {"temperature": 1.0, "logit_bias": {5: 4.0}, "forbidden_ids": [7, 8]},
    "all": {"temperature": 0.9, "top_k": 50, "top_p": 0.95, "presence_penalty": -0.5},
}
MOST_PARTED = 1 / 200
"""Of the tokens of rows in bfloat16, alone and in a batch: those that may differ."""


def run(telling: Telling) -> None:
    """Tells how many draws equal a CPU's in float32, and how often a bfloat16 row parts."""
    rng = np.random.default_rng(time.time_ns())
    with telling.part("draws"):
        for key, value in _against_a_cpu(rng).items():
            telling.tell(f"draws: {key}", value)
    for dtype in ("bfloat16",) if telling.dry else ("bfloat16", "float32"):
        with telling.part(f"company {dtype}"):
            telling.tell(f"company {dtype}", _company(rng, dtype, rows=2 if telling.dry else ROWS))


def _against_a_cpu(rng: np.random.Generator) -> dict[str, Any]:
    params = llama_jax.load(MODEL, dtype="float32")
    settings = [SamplingSettings(max_new_tokens=NEW, stop_ids=(), **x) for x in ASKED.values()]
    prompts = _prompts(rng, params, len(settings))
    seeds = rng.integers(2**32, size=len(settings)).tolist()
    here, there = (
        llama_jax.generate(jax.device_put(params, device), prompts, settings, seed=seeds)
        for device in (jax.devices()[0], jax.devices("cpu")[0])
    )
    found = {}
    for name, one, other in zip(ASKED, here, there, strict=True):
        same = _same(one.tokens, other.tokens)
        found[name] = {"same tokens": [same, NEW], "right": same == NEW}
    return found


def _company(rng: np.random.Generator, dtype: str, rows: int) -> dict[str, Any]:
    """Each row alone, and in a batch, whose rows then stand in another order."""
    params = llama_jax.load(MODEL, dtype=dtype)
    base = SamplingSettings(max_new_tokens=NEW, logprobs=1, stop_ids=())
    settings = [base.replace(temperature=float(i % 2), seed=1000 + i) for i in range(rows)]
    prompts = _prompts(rng, params, rows)
    together = llama_jax.generate(params, prompts, settings)
    turned = llama_jax.generate(params, prompts[::-1], settings[::-1])[::-1]
    decided = parted = 0
    apart = 0.0
    for i, whole in enumerate(together):
        (alone,) = llama_jax.generate(params, [prompts[i]], settings[i])
        same = _same(alone.tokens, whole.tokens)
        parted += same < NEW
        decided += min(same + 1, NEW)
        apart = max(apart, _apart(alone.logprobs[:same], whole.logprobs[:same]))
    most = decided * MOST_PARTED if dtype == "bfloat16" else 0
    return {
        "tokens decided": decided,
        "rows that part": parted,
        "log-probabilities apart": apart,
        "the same in another order": turned == together,
        "right": turned == together and parted <= max(most, 1 if dtype == "bfloat16" else 0),
    }


def _prompts(rng: np.random.Generator, params: llama_jax.Params, rows: int) -> list[list[int]]:
    lengths = rng.integers(1, 17, size=rows)
    return [rng.integers(3, params.config.vocab_size, size=n).tolist() for n in lengths]


def _same(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two texts share before the first that differs."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def _apart(one: Sequence[Any], other: Sequence[Any]) -> float:
    pairs = zip(one, other, strict=True)
    return max((abs(a.logprob - b.logprob) for a, b in pairs), default=0.0)
