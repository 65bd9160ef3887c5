"""Attention against float64: cuDNN's for prompts, our kernel's for steps, and the plain form's.

What users call is called: `kernels.attention`, with the kernels and without.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from bench.gpu_steps.sizes import heads_of_the_family
from bench.gpu_steps.telling import Telling
from llama_jax import kernels
from llama_jax.kernels.decode_attention import decode_attention
from llama_jax.kernels.paged import Pages
from llama_jax.model.int8_cache import decoded, rounded
from llama_jax.model.paged import PAGE

BOUNDS = {"bfloat16": 0.02, "float32": 1e-4}
"""How far an output may lie from float64's, as a part of the largest number of that."""
KV_HEADS, TIME, SLOTS = 2, 300, 1024
LENGTHS = (0, 1, 517, 1024)
"""Slots in use of each row of a step."""


def run(telling: Telling) -> None:
    """Tells, for each head size and group of the family, what is chosen and how exact it is.

    A past in pages and one of int8 are tried with the heads of Llama 3 8B.
    """
    rng = np.random.default_rng(time.time_ns())
    all_heads, common = ([(16, 2)], (16, 2)) if telling.dry else (heads_of_the_family(), (128, 4))
    tried = [(held, *heads) for heads in all_heads for held in ("prompt", "step")]
    tried += [(held, *common) for held in ("step in pages", "step of int8")]
    for held, head_dim, group in tried:
        for dtype in BOUNDS:
            name = f"{held} {dtype} head {head_dim} group {group}"
            with telling.part(name):
                make = a_prompt if held == "prompt" else a_step
                telling.tell(name, _found(make(rng, head_dim, group), dtype, held))
    if telling.dry:
        with telling.part("step kernel, interpreted"):
            telling.tell("step kernel, interpreted", _interpreted(a_step(rng, 16, 2)))


def _found(arrays: dict[str, Any], dtype: str, held: str) -> dict[str, Any]:
    given = {name: jnp.asarray(x, dtype) for name, x in arrays.items() if name != "lengths"}
    given, past = _past_of(given, held)
    exact = in_float64({name: np.asarray(x, np.float64) for name, x in given.items()}, arrays)
    found: dict[str, Any] = {"kernel": _has_kernel(given, past)}
    found["error"] = _difference(_attention(given, past, arrays["lengths"]), exact)
    with without_kernels():
        found["plain form's error"] = _difference(_attention(given, past, arrays["lengths"]), exact)
    found["right"] = max(found["error"], found["plain form's error"]) <= BOUNDS[dtype]
    if not found["kernel"]:
        found["why not"] = _why_not(given, past, arrays["lengths"])
    return found


def _past_of(given: dict[str, Any], held: str) -> tuple[dict[str, Any], Any]:
    """The past as it is held, and the arrays with the numbers that are held then."""
    if held == "prompt":
        return given, None
    k, v = given["past_k"], given["past_v"]
    if held == "step in pages":
        count = len(k) * SLOTS // PAGE
        # The first page of the first row is the pool's last, so that the table decides.
        table = jnp.arange(count, dtype=jnp.int32)[::-1].reshape(len(k), -1)
        return given, Pages(_in_pages(k), _in_pages(v), table)
    if held == "step of int8":
        (k8, k_scale), (v8, v_scale) = rounded(k), rounded(v)
        kept = {"past_k": decoded(k8, k_scale, jnp.float32)}
        kept["past_v"] = decoded(v8, v_scale, jnp.float32)
        return given | kept, (k8, v8, k_scale, v_scale)
    return given, (k, v)


def _in_pages(slots: Any) -> Any:
    """Slots [rows, heads, slots, head_dim] as pages [pages, heads, PAGE, head_dim], last first."""
    rows, heads, _, head_dim = slots.shape
    pages = slots.reshape(rows, heads, -1, PAGE, head_dim).swapaxes(1, 2)
    return pages.reshape(-1, heads, PAGE, head_dim)[::-1]


@contextlib.contextmanager
def without_kernels() -> Iterator[None]:
    """In it, attention takes the plain form, as where a GPU has neither kernel."""
    no = lambda *_, **__: False  # noqa: E731
    names = ("has_prompt_kernel", "has_training_kernel", "has_step_kernel", "has_paged_step_kernel")
    with contextlib.ExitStack() as stack:
        for name in names:
            stack.enter_context(mock.patch.object(kernels.gpu, name, no))
        jax.clear_caches()
        yield
    jax.clear_caches()


def _attention(given: dict[str, Any], past: Any, lengths: np.ndarray) -> np.ndarray:
    ours = jax.jit(kernels.paged_attention if isinstance(past, Pages) else kernels.attention)
    out = ours(given["q"], given["k"], given["v"], past, jnp.asarray(lengths))
    return np.asarray(out, np.float64)


def _has_kernel(given: dict[str, Any], past: Any) -> bool:
    q = given["q"]
    if isinstance(past, Pages):
        return kernels.gpu.has_paged_step_kernel_for(q, past.k)
    if past is not None:
        return kernels.gpu.has_step_kernel_for(q, past[0])
    return kernels.gpu.has_prompt_kernel(q.dtype, q.shape[-1])


def _why_not(given: dict[str, Any], past: Any, lengths: np.ndarray) -> str:
    """What the kernel says where it is called all the same."""
    q, k, v = given["q"], given["k"], given["v"]
    if past is not None:
        in_pages = isinstance(past, Pages)
        step = kernels.gpu.paged_step_attention if in_pages else kernels.gpu.step_attention
        call = functools.partial(step, q, k, v, past, jnp.asarray(lengths))
    else:
        call = functools.partial(kernels.gpu.prompt_attention, q, k, v)
    try:
        jax.block_until_ready(jax.jit(call)())
    except Exception as error:
        return " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return "called directly, it runs"


def _difference(found: np.ndarray, exact: np.ndarray) -> float:
    """The largest error, as a part of the largest number; infinity where one is no number."""
    worst = float(np.abs(found - exact).max() / np.abs(exact).max())
    return worst if np.isfinite(worst) else float("inf")


def a_prompt(rng: np.random.Generator, head_dim: int, group: int) -> dict[str, np.ndarray]:
    """Random queries, keys and values of a prompt."""
    q = rng.standard_normal((2, TIME, KV_HEADS * group, head_dim))
    k, v = (rng.standard_normal((2, TIME, KV_HEADS, head_dim)) for _ in "kv")
    return {"q": q, "k": k, "v": v, "lengths": np.zeros(2, np.int32)}


def a_step(rng: np.random.Generator, head_dim: int, group: int) -> dict[str, np.ndarray]:
    """Those of a decode step, and a past."""
    rows = len(LENGTHS)
    q = rng.standard_normal((rows, 1, KV_HEADS * group, head_dim))
    k, v = (rng.standard_normal((rows, 1, KV_HEADS, head_dim)) for _ in "kv")
    past = [rng.standard_normal((rows, KV_HEADS, SLOTS, head_dim)) for _ in "kv"]
    lengths = np.array(LENGTHS, np.int32)
    return {"q": q, "k": k, "v": v, "past_k": past[0], "past_v": past[1], "lengths": lengths}


def in_float64(given: dict[str, np.ndarray], arrays: dict[str, np.ndarray]) -> np.ndarray:
    """Softmax attention of each query over the past in use, and its step's own tokens."""
    q, k, v = given["q"], given["k"].swapaxes(1, 2), given["v"].swapaxes(1, 2)
    batch, time_, _, head_dim = q.shape
    visible = np.tril(np.ones((batch, time_, time_), bool))
    if "past_k" in given:
        k, v = (np.concatenate([given[f"past_{n}"], x], 2) for n, x in (("k", k), ("v", v)))
        in_use = np.arange(SLOTS) < arrays["lengths"][:, None, None]
        visible = np.concatenate([np.broadcast_to(in_use, (batch, time_, SLOTS)), visible], 2)
    grouped = q.reshape(batch, time_, k.shape[1], -1, head_dim)
    scores = np.einsum("btkgd,bksd->bkgts", grouped, k) * head_dim**-0.5
    scores = np.where(visible[:, None, None], scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("bkgts,bksd->btkgd", weights, v).reshape(q.shape)


def _interpreted(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """Our kernel's error where its program runs without a GPU."""
    given = {name: jnp.asarray(x, jnp.float32) for name, x in arrays.items() if name != "lengths"}
    exact = in_float64({name: np.asarray(x, np.float64) for name, x in given.items()}, arrays)
    past = (given["past_k"], given["past_v"])
    q, k, v, lengths = given["q"], given["k"], given["v"], jnp.asarray(arrays["lengths"])
    error = _difference(np.asarray(decode_attention(q, k, v, past, lengths, interpret=True)), exact)
    return {"kernel": False, "error": error, "right": error <= BOUNDS["float32"]}
