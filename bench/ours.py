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
    """The native checkpoint on the default device."""
    return Ours(loading)


class Ours:
    """`generate`, whose time for all tokens less that for the first is the loop's.

    The weights are stored as the command stores them: for a batch by `for_few_rows`.
    """

    def __init__(self, loading: Loading) -> None:
        self.loading = loading
        self.params = self._loaded()
        self.is_for_a_batch = False
        self.forward = jax.jit(llama_jax.forward)

    def _loaded(self) -> llama_jax.Params:
        return llama_jax.load(self.loading.path, dtype=self.loading.dtype)

    def store(self, rows: int) -> None:
        """Stores the weights for so many rows; never timed."""
        if self.is_for_a_batch == (rows > 1):
            return
        if rows > 1:
            self.params = for_few_rows(self.params)
        else:
            del self.params  # or two models would be in memory
            self.params = self._loaded()
        self.is_for_a_batch = rows > 1

    def decode(self, prompts: list[list[int]], new: int) -> Run:
        self.store(len(prompts))
        tokens, to_last = self._generate(prompts, new)
        _, to_first = self._generate(prompts, 1)
        return Run(tokens, len(prompts) * (new - 1), to_last - to_first)

    def _generate(self, prompts: list[list[int]], new: int) -> tuple[list[list[int]], float]:
        start = time.perf_counter()
        done = llama_jax.generate(self.params, prompts, max_new_tokens=new, **_GREEDY)
        return [one.tokens for one in done], time.perf_counter() - start

    def pace(self, prompt: list[int], new: int) -> float:
        """Seconds from the first new token to the last, of one text: its prefill is not in it."""
        self.store(1)
        deltas = llama_jax.stream(self.params, [prompt], max_new_tokens=new, **_GREEDY)
        times = [time.perf_counter() for delta in deltas if delta.tokens]
        return times[-1] - times[0]

    def prefill(self, prompt: list[int]) -> float:
        self.store(1)
        start = time.perf_counter()
        llama_jax.generate(self.params, [prompt], max_new_tokens=1, **_GREEDY)
        return time.perf_counter() - start

    def logits(self, prompt: list[int]) -> Logits:
        self.store(1)
        tokens = jnp.asarray([prompt])
        positions = jnp.arange(len(prompt))[None]
        last = jnp.asarray([[len(prompt) - 1]])
        found, _ = self.forward(self.params, tokens, positions, at=last)
        return jax.device_get(found)[0, 0]

    def peak_memory(self) -> int:
        stats = jax.devices()[0].memory_stats()
        return stats["peak_bytes_in_use"] if stats else peak_resident()
