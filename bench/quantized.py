"""Steps and prompts of one model with float32, int8, int4 and fp8 weights, in alternating rounds.

    python -m bench.quantized --shape M --layers 6 --rounds 15

Each round runs every kind of weight once, one after the other, in one process, so what else the
machine does falls on all alike. The numbers are float32's time over a kind's: above 1 is faster.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp

import llama_jax
from bench.shapes import SHAPES
from llama_jax.kernels import COMPILER_OPTIONS

KINDS = ("float32", "int8", "int4", "fp8")
SLOTS = 256


def main() -> None:
    asked = _arguments()
    config = dataclasses.replace(SHAPES[asked.shape], n_layers=asked.layers)
    whole = llama_jax.init_params(jax.random.key(0), config)
    models = {
        kind: whole if kind == "float32" else llama_jax.quantize(whole, kind) for kind in KINDS
    }
    for kind, params in models.items():
        print(f"{kind}: {8 * params.nbytes / params.size:.2f} bits a number", flush=True)
    for rows, tokens in ((1, 1), (2, 1), (8, 1), (1, asked.prompt)):
        programs = {kind: _Program(params, rows, tokens) for kind, params in models.items()}
        times: dict[str, list[float]] = {kind: [] for kind in KINDS}
        for _ in range(asked.rounds):
            for kind, program in programs.items():
                times[kind].append(program.seconds(asked.steps if tokens == 1 else 1))
        print(f"rows {rows}, tokens {tokens}")
        for kind in KINDS:
            ratios = [a / b for a, b in zip(times["float32"], times[kind], strict=True)]
            print(
                f"  {kind:8} best {min(times[kind]) * 1e3:8.2f} ms, x float32: "
                f"best {min(times['float32']) / min(times[kind]):.2f}, "
                f"median of pairs {statistics.median(ratios):.2f}; "
                f"temporaries {programs[kind].temporaries / 1e6:.1f} MB",
                flush=True,
            )


class _Program:
    """One compiled call of `forward` on a filled cache."""

    def __init__(self, params: Any, rows: int, tokens: int) -> None:
        cache = llama_jax.KVCache.empty(
            params.config, batch=rows, slots=max(SLOTS, tokens), dtype=jnp.float32
        )
        self.cache = cache if tokens > 1 else cache.continued()
        self.params, self.tokens = params, jnp.ones((rows, tokens), jnp.int32)
        start = 0 if tokens > 1 else SLOTS // 2
        self.positions = start + jnp.tile(jnp.arange(tokens), (rows, 1))
        self.last = jnp.full((rows, 1), tokens - 1)

        def step(params: Any, tokens: Any, positions: Any, cache: Any, last: Any) -> Any:
            logits, cache = llama_jax.forward(params, tokens, positions, cache, at=last)
            return logits, cache if tokens.shape[1] == 1 else None

        donated = 3 if tokens == 1 else ()
        lowered = jax.jit(step, donate_argnums=donated).lower(*self._arguments())
        self.run = lowered.compile(COMPILER_OPTIONS)
        self.temporaries = self.run.memory_analysis().temp_size_in_bytes

    def _arguments(self) -> tuple[Any, ...]:
        return self.params, self.tokens, self.positions, self.cache, self.last

    def seconds(self, steps: int) -> float:
        """Of one call, the best of `steps`."""
        best = float("inf")
        for _ in range(steps):
            start = time.perf_counter()
            _, cache = jax.block_until_ready(self.run(*self._arguments()))
            best = min(best, time.perf_counter() - start)
            self.cache = cache or self.cache
        return best


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="M")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=5, help="steps of a kind in a round")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of the prompt")
    return parser.parse_args()


if __name__ == "__main__":
    main()
