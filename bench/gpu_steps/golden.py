"""The small references: logits and greedy tokens that Meta's and Hugging Face's own code gave."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import llama_jax
from bench.gpu_steps.exact import without_kernels
from bench.gpu_steps.telling import Telling
from llama_jax.model.cache import KVCache

GOLDEN = Path(__file__).resolve().parents[2] / "tests" / "golden"
FIRST = "meta/llama3", "hf/llama3.2-tied", "meta/llama2-gqa", "hf/head-dim"
"""Those that tell most, the first two in all forms; the others follow while there is time, first
in float32 with kernels."""
BOUNDS = {"float32": 1e-4, "bfloat16": 0.05}
"""How far logits may lie from the reference's, as a part of the largest of them."""
ENOUGH = 12.0
"""Seconds that must be left for another model."""


def run(telling: Telling) -> None:
    """Tells, for each model, dtype and form, how far the logits are off and which tokens differ."""
    for name, dtype, form in _asked(telling.dry):
        if telling.left < ENOUGH:
            telling.tell("left out", f"{name} {dtype} {form}, and what follows it")
            return
        key = f"{name} {dtype} {form}"
        with telling.part(key), forms(form):
            telling.tell(key, _found(GOLDEN / name, dtype))


def _asked(dry: bool) -> Iterator[tuple[str, str, str]]:
    if dry:
        yield "meta/llama3", "float32", "kernels"
        yield "hf/llama3.2-tied", "bfloat16", "plain"
        return
    names = [f"{folder.parent.name}/{folder.name}" for folder in sorted(GOLDEN.glob("*/*/"))]
    ways = [(dtype, form) for form in ("kernels", "plain") for dtype in BOUNDS]
    yield from ((name, *way) for name in FIRST[:2] for way in ways)
    others = [*FIRST[2:], *(other for other in names if other not in FIRST)]
    yield from ((name, *way) for way in ways for name in others)


def forms(form: str) -> contextlib.AbstractContextManager[None]:
    """In it, attention takes its kernels where there are any, or the plain form."""
    return without_kernels() if form == "plain" else contextlib.nullcontext()


def _found(folder: Path, dtype: str) -> dict[str, Any]:
    params = llama_jax.load(folder, dtype=dtype)
    with np.load(folder / "reference.npz") as file:
        reference = dict(file)
    tokens, stride = reference["tokens"], int(reference["logits_stride"])
    wanted = np.asarray(reference["logits"], np.float64)
    whole, stepped = logits_of(params, tokens)
    apart = lambda x: float(np.abs(x - wanted).max() / np.abs(wanted).max())  # noqa: E731
    error = max(apart(whole[:, ::stride]), apart(stepped[:, ::stride]))
    prompts, greedy = greedy_of(folder, reference)
    same, asked = _greedy(params, prompts, greedy)
    right = error <= BOUNDS[dtype] and (dtype != "float32" or same == asked)
    return {"logits' error": error, "greedy tokens": [same, asked], "right": right}


def logits_of(params: llama_jax.Params, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All logits: of a fresh prompt read whole, and the last few of steps beside a cache."""
    batch, time = tokens.shape
    forward = jax.jit(llama_jax.forward)
    cache = KVCache.empty(params.config, batch=batch, slots=256, dtype=params.dtype)
    positions = jnp.broadcast_to(jnp.arange(time), tokens.shape)
    first, steps = time - 4, []
    whole, _ = forward(params, tokens, positions, cache)
    logits, cache = forward(params, tokens[:, :first], positions[:, :first], cache)
    for at in range(first, time):
        step, cache = forward(params, tokens[:, at : at + 1], positions[:, at : at + 1], cache)
        steps.append(step)
    stepped = jnp.concatenate([logits, *steps], axis=1)
    return np.asarray(whole, np.float64), np.asarray(stepped, np.float64)


def greedy_of(
    folder: Path, reference: dict[str, np.ndarray]
) -> tuple[list[list[int]], list[list[int]]]:
    """The prompts, and each with its greedy continuation."""
    if (path := folder / "greedy.json").exists():
        found = json.loads(path.read_text())
        return found["prompts"], found["greedy"]
    prompts = [[int(token) for token in row if token >= 0] for row in reference["prompts"]]
    return prompts, reference["greedy"].tolist()


def _greedy(
    params: llama_jax.Params, prompts: Sequence[list[int]], greedy: Sequence[list[int]]
) -> tuple[int, int]:
    """How many tokens are the reference's before the first that is not, and how many there are."""
    new = max(len(row) - len(prompt) for prompt, row in zip(prompts, greedy, strict=True))
    done = llama_jax.generate(params, list(prompts), max_new_tokens=new, temperature=0, stop_ids=())
    same = asked = 0
    for prompt, row, completion in zip(prompts, greedy, done, strict=True):
        wanted = row[len(prompt) :]
        asked += len(wanted)
        pairs = list(zip(completion.tokens, wanted, strict=False))
        same += next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
    return same, asked
