"""Steps and prompts of one model with float32 and quantized weights, in alternating rounds.

    python -m bench.quantized --shape M --layers 6 --rounds 15

Each round runs every kind of weight once, one after the other, in one process, so what else the
machine does falls on all alike. A ratio above 1 is faster than float32.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import llama_jax
from bench.shapes import SHAPES
from llama_jax.kernels import COMPILER_OPTIONS

KINDS = ("float32", "int8", "int8_channel", "int4", "fp8", "int8_dynamic")
SLOTS = 256


class Seconds(NamedTuple):
    """Of one call."""

    passed: float
    cpu: float
    """Of the processor; waiting for other processes does not count."""


def main() -> None:
    asked = _arguments()
    config = dataclasses.replace(SHAPES[asked.shape], n_layers=asked.layers)
    whole = llama_jax.init_params(jax.random.key(0), config)
    kinds = ("float32", *(kind for kind in asked.kinds if kind != "float32"))
    models = {kind: llama_jax.quantize(whole, kind) for kind in kinds[1:]} | {"float32": whole}
    for kind, params in models.items():
        print(f"{kind}: {8 * params.nbytes / params.size:.2f} bits a number", flush=True)
    calls = [(rows, 1) for rows in asked.rows]
    for rows, tokens in [*calls, (1, asked.prompt)] if asked.prompt else calls:
        programs = {kind: _Program(params, rows, tokens) for kind, params in models.items()}
        times: dict[str, list[Seconds]] = {kind: [] for kind in kinds}
        for _ in range(asked.rounds):
            for kind, program in programs.items():
                times[kind].append(program.seconds(asked.steps if tokens == 1 else 1))
        print(f"rows {rows}, tokens {tokens}")
        for kind in kinds:
            more = f"temporaries {programs[kind].temporaries / 1e6:.1f} MB"
            print(f"  {kind:12} {_told(times['float32'], times[kind])}; {more}", flush=True)


def _told(whole: list[Seconds], ours: list[Seconds]) -> str:
    """A kind's times against float32's."""
    parts = []
    for name in Seconds._fields:
        one, other = ([getattr(each, name) for each in times] for times in (whole, ours))
        pairs = statistics.median(a / b for a, b in zip(one, other, strict=True))
        parts.append(
            f"{name} best {min(other) * 1e3:.2f} ms, x float32: best {min(one) / min(other):.2f}, "
            f"median of pairs {pairs:.2f}"
        )
    return "; ".join(parts)


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

    def seconds(self, steps: int) -> Seconds:
        """Of one call, the best of `steps`."""
        found = []
        for _ in range(steps):
            start, cpu = time.perf_counter(), time.process_time()
            _, cache = jax.block_until_ready(self.run(*self._arguments()))
            found.append((time.perf_counter() - start, time.process_time() - cpu))
            self.cache = cache or self.cache
        return Seconds(*map(min, zip(*found, strict=True)))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="M")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=5, help="steps of a kind in a round")
    parser.add_argument("--rows", type=int, nargs="*", default=[1, 2, 8])
    parser.add_argument("--prompt", type=int, default=512, help="tokens of the prompt")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
