"""llama_jax, through the functions that its users call."""

from __future__ import annotations

import time
from typing import Any

import jax
import jax.numpy as jnp

import llama_jax
from benchmarks.contestant import Loading, Logits, Run
from benchmarks.memory import peak_resident

_GREEDY: dict[str, Any] = {"temperature": 0, "stop_ids": ()}


def load(loading: Loading) -> Ours:
    """The native checkpoint on the default device."""
    return Ours(llama_jax.load(loading.path, dtype=loading.dtype))


class Ours:
    """`stream` decodes, `generate` reads prompts."""

    def __init__(self, params: llama_jax.Params) -> None:
        self.params = params
        self.forward = jax.jit(llama_jax.forward)

    def decode(self, prompts: list[list[int]], new: int) -> Run:
        tokens: list[list[int]] = [[] for _ in prompts]
        waiting, at_first, first, last = len(prompts), 0, 0.0, 0.0
        for delta in llama_jax.stream(self.params, prompts, max_new_tokens=new, **_GREEDY):
            last = time.perf_counter()
            waiting -= bool(delta.tokens) and not tokens[delta.row]
            tokens[delta.row] += delta.tokens
            if not waiting and not first:
                first, at_first = last, sum(len(row) for row in tokens)
        return Run(tokens, sum(len(row) for row in tokens) - at_first, last - first)

    def prefill(self, prompt: list[int]) -> float:
        start = time.perf_counter()
        llama_jax.generate(self.params, [prompt], max_new_tokens=1, **_GREEDY)
        return time.perf_counter() - start

    def logits(self, prompt: list[int]) -> Logits:
        tokens = jnp.asarray([prompt])
        positions = jnp.arange(len(prompt))[None]
        last = jnp.asarray([[len(prompt) - 1]])
        found, _ = self.forward(self.params, tokens, positions, at=last)
        return jax.device_get(found)[0, 0]

    def peak_memory(self) -> int:
        stats = jax.devices()[0].memory_stats()
        return stats["peak_bytes_in_use"] if stats else peak_resident()
