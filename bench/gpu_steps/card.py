"""The card: what it is, and the two rates that all else is held against."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
import subprocess
from typing import Any

import jax
import jax.numpy as jnp

from bench.gpu_steps.telling import Telling
from bench.gpu_steps.timing import timed

PACKAGES = ["jax", "jaxlib", "flax", "numpy", "torch", "transformers", "triton"]
PREFIXES = ("jax-cuda", "nvidia-cudnn", "nvidia-cublas")
_ASKED = "name,driver_version,memory.total,power.limit,clocks.max.sm,clocks.max.memory"
COPIES, PRODUCTS = 8, 8
"""How often one program copies, or multiplies, so that starting it takes no part of the time."""


def run(telling: Telling) -> None:
    """Tells the card, the versions, and its rates of copying, reading and multiplying."""
    device = jax.devices()[0]
    telling.tell("card", device.device_kind)
    telling.tell("platform", device.platform)
    telling.tell("cuda", device.client.platform_version.splitlines()[-1])
    telling.tell("memory bytes", (device.memory_stats() or {}).get("bytes_limit"))
    telling.tell("versions", _versions())
    telling.tell("nvidia-smi", _nvidia_smi())
    size = 1 << 22 if telling.dry else 1 << 31
    with telling.part("bandwidth"):
        telling.tell("copy bytes/s", _rate(_copying(size), 2 * size * COPIES))
        telling.tell("read bytes/s", _rate(_reading(size), size * COPIES))
    with telling.part("matrix rate"):
        for side in (256,) if telling.dry else (4096, 8192):
            rate = _rate(_multiplying(side), 2 * side**3 * PRODUCTS)
            telling.tell(f"bfloat16 flop/s of {side}", rate)


def _rate(run: Any, amount: int) -> dict[str, float]:
    """How much of something is done in a second: the median, the least, the most."""
    took = timed(run, repeats=7, warm=2)
    return {name: amount / took[of] for name, of in WORST_FIRST.items()}


WORST_FIRST = {"median": "median", "min": "max", "max": "min"}
"""The least rate is that of the longest time."""


def _copying(size: int) -> Any:
    """Adds one to every byte's worth of an array, in place, again and again."""
    x = jax.random.normal(jax.random.key(1), (size // 4,), jnp.float32)

    @functools.partial(jax.jit, donate_argnums=0)
    def program(x: jax.Array) -> jax.Array:
        # Behind a barrier, so that no two rounds become one.
        more = lambda i, x: jax.lax.optimization_barrier(x + i.astype(x.dtype))  # noqa: E731
        return jax.lax.fori_loop(0, COPIES, more, x)

    def run() -> None:
        nonlocal x
        x = program(x).block_until_ready()

    return run


def _reading(size: int) -> Any:
    """Sums an array, again and again: each sum depends on the one before."""
    x = jax.random.normal(jax.random.key(2), (size // 4,), jnp.float32)

    @jax.jit
    def program(x: jax.Array) -> jax.Array:
        more = lambda _, total: jnp.sum(jnp.abs(x + total)) * 1e-9  # noqa: E731
        return jax.lax.fori_loop(0, COPIES, more, jnp.float32(0))

    return lambda: program(x).block_until_ready()


def _multiplying(side: int) -> Any:
    """The products of random square matrices, each of the one before."""
    keys = jax.random.split(jax.random.key(3))
    x, w = (jax.random.normal(key, (side, side), jnp.bfloat16) for key in keys)
    w = w / side**0.5

    @jax.jit
    def program(x: jax.Array, w: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, PRODUCTS, lambda _, x: x @ w, x)

    return lambda: program(x, w).block_until_ready()


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"] or ""
        if name in PACKAGES or name.startswith(PREFIXES):
            found[name] = distribution.version
    return dict(sorted(found.items()))


def _nvidia_smi() -> str | None:
    """Its name, driver, memory, power limit and highest clocks; None where nothing tells."""
    command = ["nvidia-smi", f"--query-gpu={_ASKED}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if done.returncode else done.stdout.splitlines()[0].strip()
