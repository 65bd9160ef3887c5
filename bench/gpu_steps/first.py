"""The first token of a process that is just started: programs compiled anew, and from the cache."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

import llama_jax
from bench.gpu_steps.models import config_of, random_ids, random_params
from bench.gpu_steps.telling import Telling

PROMPT, NEW = 16, 8
PROCESSES = ("cold", "cached", "cached again")
"""The first has no compiled programs to find; all find the weights in the page cache."""


def run(telling: Telling) -> None:
    """Tells the seconds from each process' start to its first token, of 1B's shape."""
    folder, caches = telling.scratch / "model", telling.scratch / "first"
    _make(folder, telling.dry)
    telling.tell("model bytes", sum(x.stat().st_size for x in folder.rglob("*") if x.is_file()))
    shutil.rmtree(caches, ignore_errors=True)
    for name in PROCESSES[:2] if telling.dry else PROCESSES:
        with telling.part(name):
            telling.tell(name, _started(folder, caches, telling.left))
    shutil.rmtree(folder, ignore_errors=True)


def _make(folder: Path, dry: bool) -> None:
    """Writes random weights, in a process of its own: what it holds of the card ends with it."""
    code = f"from bench.gpu_steps.first import written; written({str(folder)!r}, {dry})"
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-c", code], check=True, stdin=subprocess.DEVNULL)


def written(folder: str, dry: bool) -> None:
    """Writes the model: a native checkpoint, as `convert` makes one."""
    config = config_of("llama-3.2-1b", dry=dry)
    llama_jax.save(random_params(config, jnp.bfloat16, seed=0), Path(folder))


def _started(folder: Path, caches: Path, limit: float) -> dict[str, Any]:
    """Runs the command that users type; says when its first token came, and when it ended."""
    config = config_of("llama-3.2-1b", dry=False)
    ids = " ".join(map(str, random_ids(np.random.default_rng(0), config, PROMPT) % 200 + 5))
    command = [sys.executable, "-m", "llama_jax", "generate", str(folder), "--ids", ids]
    command += ["-n", str(NEW), "-t", "0", "--no-echo", "--dtype", "bfloat16"]
    env = {**os.environ, "LLAMA_JAX_CACHE": str(caches)}
    for name in ("JAX_COMPILATION_CACHE_DIR", "XLA_PYTHON_CLIENT_PREALLOCATE"):
        env.pop(name, None)  # as a user's process has it
    start = time.perf_counter()
    process = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    try:
        ready = select.select([process.stdout], [], [], limit - 5)[0]
        written = os.read(process.stdout.fileno(), 1 << 16) if ready else b""
        first = time.perf_counter() - start
        process.communicate(timeout=max(1.0, limit - first - 3))
    finally:
        process.kill()
        process.wait()
    if process.returncode or not written.strip():
        raise RuntimeError(f"the command ended with {process.returncode} and gave no first token")
    return {"first token s": first, "all tokens s": time.perf_counter() - start}
