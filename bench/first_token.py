"""How long a process takes from its start to its first token, and how much memory in all."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.contest import joined, turned
from bench.entrants import OURS
from bench.llama2c import command as llama2c_command
from bench.workers import LIMIT, environment, worker_command

Times = dict[str, dict[str, list[float]]]
"""By contestant `cold` and `peak`, and ours also `cached`: a number a round."""


@dataclasses.dataclass(frozen=True)
class Start:
    """One process, from its start to its end."""

    seconds: float
    """Until it wrote its first token."""
    peak: int
    """Bytes resident at the most, as the kernel counts them: no less than this process has held."""


def first_tokens(
    given: dict[str, dict[str, Any]], prompt: Sequence[int], rounds: int
) -> Iterator[tuple[Times, dict[str, str]]]:
    """All rounds so far, after each, and why a peer has none: a process each, in alternation.

    Cold means an empty cache of compiled programs, and with `cached` they are there; `peak` is of
    the cold process. A first round is not counted, and a peer that fails in it is left out.
    """
    found: Times = {}
    failed = {}
    for name, fields in given.items():
        try:
            one_round(name, fields, prompt)
            found[name] = {}
        except RuntimeError as error:
            if name == OURS:
                raise
            failed[name] = str(error).splitlines()[0]
    for count in range(rounds):
        one = {name: one_round(name, given[name], prompt) for name in turned(list(found), count)}
        found = {name: joined(found[name], one[name]) for name in found}
        yield found, failed


def one_round(name: str, fields: dict[str, Any], prompt: Sequence[int]) -> dict[str, list[float]]:
    """What counts follows a process of its own kind, and finds what that one leaves.

    So it reads its files from the page cache, and is given memory that the machine really has:
    a virtual one's host takes freed memory back, and is slow to give it again.
    """
    with tempfile.TemporaryDirectory() as caches:
        started(name, fields, prompt, caches)
    with tempfile.TemporaryDirectory() as caches:
        cold = started(name, fields, prompt, caches)
        found = {"cold": [cold.seconds], "peak": [cold.peak]}
        if name == OURS:
            found["cached"] = [started(name, fields, prompt, caches).seconds]
    return found


def started(name: str, given: dict[str, Any], prompt: Sequence[int], caches: str) -> Start:
    """A whole process, which must write to its standard output within LIMIT."""
    env = environment(name, given["device"], given["threads"])
    env["XDG_CACHE_HOME"] = caches  # where a program keeps what it compiled
    for other in (
        "JAX_COMPILATION_CACHE_DIR",
        "JAX_ENABLE_COMPILATION_CACHE",
        "LLAMA_JAX_CACHE",
        "XLA_PYTHON_CLIENT_PREALLOCATE",  # it has the device for itself, as a user's has
    ):
        env.pop(other, None)
    start = time.perf_counter()
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            start_command(name, given, list(prompt)),
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
            process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        errors.seek(0)
        said = errors.read().decode(errors="replace").splitlines()[-15:]
    if process.returncode or not written.strip():
        reason = "\n".join([f"{process.args!r} ended with {process.returncode}", *said])
        raise RuntimeError(f"{name} gave no first token: {reason}")
    return Start(seconds, usage.ru_maxrss * 1024)


def start_command(name: str, given: dict[str, Any], prompt: list[int]) -> list[str]:
    """Ours is the command that users call, and so is llama2.c's; a library gets a short program."""
    if name == OURS:
        ids = " ".join(map(str, prompt))
        generate = [sys.executable, "-m", "llama_jax", "generate", given["path"], "--ids", ids]
        return [*generate, "-n", "4", "-t", "0", "--no-echo", "--dtype", given["dtype"]]
    if name == "llama2.c":
        return llama2c_command(Path(given["path"]), given["binary"], prompt, 4)
    one = {**given, "contexts": {1: 256}, "first_token": prompt}
    return worker_command(name, one)
