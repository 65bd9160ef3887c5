"""Steps and prompts of one model with float32 and quantized weights, in alternating rounds.

    python -m bench.quantized --shape M --layers 6 --rounds 15
    python -m bench.quantized --model M-float32/native --files m-q8_0.gguf m-q4_0.gguf --rows 1

Each round runs every kind of weight once, one after the other, in one process, so what else the
machine does falls on all alike. A ratio above 1 is faster than float32. A GGUF file is run twice,
by us and by llama.cpp: the ratio of the two is told as well.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import llama_jax
from bench.shapes import SHAPES
from llama_jax.kernels import COMPILER_OPTIONS

KINDS = ("float32", "int8", "int8_channel", "int4", "fp8", "int8_dynamic")
SLOTS = 256
PEER = "llama.cpp "


class Seconds(NamedTuple):
    """Of one call."""

    passed: float
    cpu: float
    """Of the processor; waiting for other processes does not count."""


def main() -> None:
    asked = _arguments()
    models = _models(asked)
    for kind, params in models.items():
        print(f"{kind}: {8 * params.nbytes / params.size:.2f} bits a number", flush=True)
    calls = [(rows, 1) for rows in asked.rows]
    for rows, tokens in [*calls, (1, asked.prompt)] if asked.prompt else calls:
        programs: dict[str, Any] = {
            kind: _Program(params, rows, tokens) for kind, params in models.items()
        }
        programs |= {PEER + file.stem: _Peer(file, rows, tokens) for file in asked.files}
        times: dict[str, list[Seconds]] = {kind: [] for kind in programs}
        for _ in range(asked.rounds):
            for kind, program in programs.items():
                times[kind].append(program.seconds(asked.steps if tokens == 1 else 1))
        print(f"rows {rows}, tokens {tokens}, load average {os.getloadavg()[0]:.1f}")
        for kind, program in programs.items():
            told = _told("float32", times["float32"], times[kind])
            if beside := times.get(PEER + kind):
                told += f"; {_told(PEER + kind, beside, times[kind], ('passed',))}"
            if program.temporaries is not None:
                told += f"; temporaries {program.temporaries / 1e6:.1f} MB"
            print(f"  {kind:12} {told}", flush=True)


def _models(asked: argparse.Namespace) -> dict[str, Any]:
    """Float32's first, then the kinds that are made of it, then the files'."""
    if asked.model is None:
        config = dataclasses.replace(SHAPES[asked.shape], n_layers=asked.layers)
        whole = llama_jax.init_params(jax.random.key(0), config)
    else:
        whole = llama_jax.load(asked.model, dtype="float32")
    made = {kind: llama_jax.quantize(whole, kind) for kind in asked.kinds if kind != "float32"}
    read = {file.stem: llama_jax.load(file, dtype="float32") for file in asked.files}
    return {"float32": whole, **made, **read}


def _told(
    name: str, theirs: list[Seconds], ours: list[Seconds], fields: tuple[str, ...] = Seconds._fields
) -> str:
    """A kind's times against those of another."""
    parts = []
    for field in fields:
        one, other = ([getattr(each, field) for each in times] for times in (theirs, ours))
        pairs = statistics.median(a / b for a, b in zip(one, other, strict=True))
        parts.append(
            f"{field} best {min(other) * 1e3:.2f} ms, x {name}: best {min(one) / min(other):.2f}, "
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


class _Peer:
    """The same call by llama.cpp, on a cache of the same slots, of which as many are in use."""

    temporaries = None

    def __init__(self, file: Path, rows: int, tokens: int) -> None:
        from bench.contestant import Loading
        from bench.llama_cpp_peer import LlamaCpp

        contexts = {rows: max(SLOTS, tokens)}
        threads = len(os.sched_getaffinity(0))
        self.model = LlamaCpp(Loading(file, "float32", "cpu", threads, contexts))
        self.rows, self.tokens = rows, tokens
        if tokens == 1:
            self.model.decode([[1] * (SLOTS // 2)] * rows, 1)

    def seconds(self, steps: int) -> Seconds:
        """Of one call, the best of `steps`."""
        found = []
        for _ in range(steps):
            start, cpu = time.perf_counter(), time.process_time()
            if self.tokens > 1:
                self.model.prefill([1] * self.tokens)
            else:
                self.model.step([1] * self.rows, SLOTS // 2)
            found.append((time.perf_counter() - start, time.process_time() - cpu))
        return Seconds(*map(min, zip(*found, strict=True)))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="M")
    parser.add_argument("--model", help="a checkpoint, in place of a shape's random weights")
    parser.add_argument("--files", nargs="*", type=Path, default=[], help="GGUF files of the same")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=5, help="steps of a kind in a round")
    parser.add_argument("--rows", type=int, nargs="*", default=[1, 2, 8])
    parser.add_argument("--prompt", type=int, default=512, help="tokens of the prompt")
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=KINDS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
