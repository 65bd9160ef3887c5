"""How long a process takes from its start to its first token."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.entrants import OURS
from benchmarks.llama2c import command as llama2c_command
from benchmarks.workers import LIMIT, environment, worker_command

Times = dict[str, list[float]]


def first_tokens(
    given: dict[str, dict[str, Any]], prompt: Sequence[int], repeats: int
) -> dict[str, Times]:
    """Seconds for each contestant, in alternation: `cold`, and ours also with `cached` programs.

    Cold means an empty cache of compiled programs; the files are in the page cache for everybody,
    since a first round is not counted.
    """
    found: dict[str, Times] = {name: {"cold": []} for name in given}
    for counted in [False] + [True] * repeats:
        for name, fields in given.items():
            with tempfile.TemporaryDirectory() as caches:
                started = _seconds(name, fields, prompt, caches)
                if counted:
                    found[name]["cold"].append(started)
                if counted and name == OURS:
                    again = _seconds(name, fields, prompt, caches)
                    found[name].setdefault("cached", []).append(again)
    return found


def _seconds(name: str, given: dict[str, Any], prompt: Sequence[int], caches: str) -> float:
    """Until the process writes anything to its standard output, which it must within LIMIT."""
    env = environment(name, given["device"], given["threads"])
    env["XDG_CACHE_HOME"] = caches  # where a program keeps what it compiled
    for elsewhere in (
        "JAX_COMPILATION_CACHE_DIR",
        "JAX_ENABLE_COMPILATION_CACHE",
        "LLAMA_JAX_CACHE",
    ):
        env.pop(elsewhere, None)
    start = time.perf_counter()
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            _command(name, given, list(prompt)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=env,
        ) as process,
    ):
        if not select.select([process.stdout], [], [], LIMIT)[0]:
            process.kill()
        written = os.read(process.stdout.fileno(), 1 << 16)
        seconds = time.perf_counter() - start
        with contextlib.suppress(OSError):
            process.communicate()
        errors.seek(0)
        said = errors.read().decode(errors="replace").splitlines()[-15:]
    if process.returncode or not written.strip():
        reason = "\n".join([f"{process.args!r} ended with {process.returncode}", *said])
        raise RuntimeError(f"{name} gave no first token: {reason}")
    return seconds


def _command(name: str, given: dict[str, Any], prompt: list[int]) -> list[str]:
    """Ours is the command that users call, and so is llama2.c's; a library gets a short program."""
    if name == OURS:
        ids = " ".join(map(str, prompt))
        generate = [sys.executable, "-m", "llama_jax.cli", "generate", given["path"], "--ids", ids]
        return [*generate, "-n", "4", "-t", "0", "--no-echo", "--dtype", given["dtype"]]
    if name == "llama2.c":
        return llama2c_command(Path(given["path"]), given["binary"], prompt, 4)
    one = {**given, "contexts": {1: 256}, "first_token": prompt}
    return worker_command(name, one)
