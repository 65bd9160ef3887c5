"""Runs the steps one after the other, and keeps what each tells as it tells it.

A step is a process group of its own. It writes lines of JSON, `[key, value]`, and the record on
disk has them at once: whatever ends a step, or this process, leaves what was told.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from bench.gpu_steps.plan import Step

ROOT = Path(__file__).resolve().parents[2]
LEAST = 8.0
"""Seconds: with fewer left, a step is not begun."""
IN_PART = 3
"""The exit status of a step of which a part failed."""
SCRATCH = "LLAMA_JAX_GPU_SCRATCH"
"""In a step's environment: a folder for what nobody keeps."""
LAST_LINES = 8
"""Of a step's error, which are kept."""

Record = dict[str, Any]


def run_steps(
    steps: Sequence[Step],
    record: Record,
    *,
    seconds: float,
    log: Path,
    keep: Callable[[Record], None],
    command: Callable[[Step, float], list[str]],
    env: dict[str, str],
) -> None:
    """Runs each step that there is time for; `keep` is called whenever `record` has more."""
    record["steps"] = {
        step.name: {"what": step.what, "limit_s": step.limit, "status": "not run", "found": {}}
        for step in steps
    }
    end = time.monotonic() + seconds
    for step in steps:
        left = end - time.monotonic()
        kept = record["steps"][step.name]
        if left < LEAST:
            continue
        kept["status"] = "running"
        keep(record)
        start, began = time.monotonic(), log.stat().st_size if log.exists() else 0
        with log.open("a", encoding="utf-8") as errors:
            errors.write(f"=== {step.name}\n")
            errors.flush()
            limit = min(step.limit, left)
            kept["status"] = _run(
                command(step, limit), limit, errors, env, lambda: keep(record), kept
            )
        kept["seconds"] = round(time.monotonic() - start, 1)
        if kept["status"] != "done":
            kept["error"] = last_lines(log, began)
        keep(record)
        print(f"{step.name}: {kept['status']}, {kept['seconds']} s", file=sys.stderr, flush=True)
    keep(record)


def _run(
    command: list[str],
    limit: float,
    errors: TextIO,
    env: dict[str, str],
    keep: Callable[[], None],
    kept: Record,
) -> str:
    """Runs one step to its end or its limit; says how it ended."""
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=errors,
        process_group=0,  # so that what it starts ends with it
    )
    try:
        for key, value in _told(process, time.monotonic() + limit):
            kept["found"][key] = value
            keep()
        if (code := process.poll()) is None:
            return f"ended at its limit of {limit:.0f} s"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
    if code < 0:
        return f"ended by {signal.Signals(-code).name}"
    return {0: "done", IN_PART: "done in part"}.get(code, f"failed with {code}")


def _told(process: subprocess.Popen[bytes], end: float) -> Iterator[tuple[str, Any]]:
    """What a process writes until it ends or its time has passed."""
    rest = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while (left := end - time.monotonic()) > 0:
            if not selector.select(left):
                return
            more = os.read(process.stdout.fileno(), 1 << 16)
            if not more:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=left)
                return
            *lines, rest = (rest + more).split(b"\n")
            for line in lines:
                key, value = json.loads(line)
                yield key, value


def last_lines(log: Path, start: int) -> list[str]:
    """The last lines that say something, of what was written after a place in a log."""
    with log.open("rb") as file:
        file.seek(start)
        said = file.read().decode(errors="replace").splitlines()[1:]
    return [line.rstrip()[:300] for line in said if line.strip()][-LAST_LINES:]


def keep_whole(path: Path, text: str) -> None:
    """Writes a file; an earlier one is whole until it is."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
