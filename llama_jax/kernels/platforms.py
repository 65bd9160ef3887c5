"""What a platform is given: dtypes, compiler options, the layout of weights."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PLANNED_PLATFORM = "gpu"
"""The platform for which a plan is made where its devices are not here, as JAX names it."""
COMPILER_OPTIONS: dict[str, Any] = {"xla_cpu_prefer_vector_width": 512}
"""XLA's options for programs that read weights. By default XLA uses 256-bit vectors; with 512 bits
a core multiplies weights as fast as it reads them."""


def weight_dtype(platform: str) -> np.dtype:
    """The dtype of a model for which nobody chose one: float32 on a CPU, bfloat16 elsewhere."""
    return np.dtype(jnp.float32 if platform == "cpu" else jnp.bfloat16)


def cache_dtype(platform: str, dtype: Any) -> Any:
    """The dtype of keys and values beside weights of `dtype`; on a CPU always float32.

    On a CPU, XLA rewrites a whole 16-bit array to update one slot.
    """
    return jnp.dtype("float32") if platform == "cpu" else dtype


def multiplies_by_outputs(platform: str, dtype: Any) -> bool:
    """Whether several rows are multiplied faster with a weight that lies [out, in]."""
    return platform == "cpu" and jnp.dtype(dtype) in (jnp.float32, jnp.bfloat16)


def on_platform(of: Callable[..., Any], *arrays: Any) -> Any:
    """`of(platform, *arrays)`, of the platform that a program is compiled for."""
    forms = {"cpu": "cpu", "default": PLANNED_PLATFORM}
    chosen = {name: functools.partial(of, platform) for name, platform in forms.items()}
    return jax.lax.platform_dependent(*arrays, **chosen)


def tokens_in_cache(platform: str, vocab: int) -> int | None:
    """How many tokens' logits a CPU's cache holds, but at least 512; None on other platforms.

    Larger arrays of logits go through memory: with 3,072 tokens and 2,048 words a step took 1.1
    times as long. With fewer than 512 tokens, reading the output weight takes longer.
    """
    return max(512, 2**20 // vocab) if platform == "cpu" else None


def computes_again(platform: str) -> bool:
    """Whether rematerialization (`jax.checkpoint`) saves memory. On a CPU, XLA undoes it."""
    return platform != "cpu"


def flash_attends(platform: str, dtype: Any, *, separate: bool) -> bool:
    """Whether a GPU's kernel computes attention in training, and so keeps no scores."""
    return platform != "cpu" and not separate and jnp.dtype(dtype).itemsize == 2


def keeps_collective_order(platform: str) -> bool:
    """Whether a program that is read from a file runs its collectives in their order.

    Processes of a job on CPUs talk through Gloo, which pairs their messages by order alone. XLA
    keeps that order in a program that it compiled. In one that it reads from a file, collectives of
    different branches, loops and calls have no order (docs/notes/training.md, "A fault of kept
    programs").
    """
    return platform != "cpu"


def devices_can_be_made(platform: str) -> bool:
    """Whether a platform can simulate several devices: `--cpu-devices`."""
    return platform == "cpu"
