"""llama_jax, through the functions that its users call."""

from __future__ import annotations

import time
from typing import Any

import jax
import jax.numpy as jnp

import llama_jax
from bench.contestant import Loading, Logits, Run
from bench.memory import peak_resident
from llama_jax.generation.few_rows import for_few_rows

_GREEDY: dict[str, Any] = {"temperature": 0, "stop_ids": ()}


def load(loading: Loading) -> Ours:
    """The native checkpoint on the default device, stored as the command stores it for a batch."""
    return Ours(for_few_rows(llama_jax.load(loading.path, dtype=loading.dtype)))


class Ours:
    """`generate`, whose time for all tokens less that for the first is the loop's."""

    def __init__(self, params: llama_jax.Params) -> None:
        self.params = params
        self.forward = jax.jit(llama_jax.forward)

    def decode(self, prompts: list[list[int]], new: int) -> Run:
        tokens, to_last = self._generate(prompts, new)
        _, to_first = self._generate(prompts, 1)
        return Run(tokens, len(prompts) * (new - 1), to_last - to_first)

    def _generate(self, prompts: list[list[int]], new: int) -> tuple[list[list[int]], float]:
        start = time.perf_counter()
        done = llama_jax.generate(self.params, prompts, max_new_tokens=new, **_GREEDY)
        return [one.tokens for one in done], time.perf_counter() - start

    def pace(self, prompt: list[int], new: int) -> float:
        """Seconds from the first new token to the last, of one text: its prefill is not in it."""
        deltas = llama_jax.stream(self.params, [prompt], max_new_tokens=new, **_GREEDY)
        times = [time.perf_counter() for delta in deltas if delta.tokens]
        return times[-1] - times[0]

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
