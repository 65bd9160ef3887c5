"""Starting processes and asking them, from the parent."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.entrants import OURS
from bench.worker import MACHINE

LIMIT = 15 * 60.0
"""Seconds after which a process that says nothing is given up."""
_ROOT = Path(__file__).resolve().parents[1]


class WorkerError(RuntimeError):
    """A process that did not do what it was asked: `reason` is one line of what its log says."""

    def __init__(self, name: str, reason: str, log: Path) -> None:
        end = "\n".join(_said(log)[-15:])
        super().__init__(f"{name}: {reason}\n{end}".strip())
        self.reason = reason


class Worker:
    """One contestant's process."""

    def __init__(self, name: str, given: dict[str, Any], log: Path) -> None:
        self.name, self.log = name, log
        with open(log, "w") as errors:
            self.process = subprocess.Popen(
                worker_command(name, given),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=environment(name, given["device"], given["threads"]),
            )
        try:
            self.ready = self._answer("load")
        except WorkerError:
            self.stop()
            raise

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """The worker's answer; WorkerError, with the end of its log, where it has none."""
        with contextlib.suppress(BrokenPipeError):  # it has ended, as the missing answer will tell
            self.process.stdin.write(json.dumps({"do": do, **request}) + "\n")
            self.process.stdin.flush()
        return self._answer(do)

    def stop(self) -> None:
        """Ends the process and waits for it."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()

    def _answer(self, do: str) -> dict[str, Any]:
        if not select.select([self.process.stdout], [], [], LIMIT)[0]:
            self.process.kill()
            silent = f"it did not {do} within {LIMIT / 60:.3g} minutes; its log is {self.log}"
            raise WorkerError(self.name, silent, self.log)
        line = self.process.stdout.readline()
        if not line:
            raise WorkerError(self.name, ending(self.process.wait(), self.log), self.log)
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(self.name, answer["error"].splitlines()[0], self.log)
        if answer.get("again"):
            times = f"measured {answer['again'] + 1} times: the machine is busy"
            print(f"{self.name}: {do} was {times}", file=sys.stderr, flush=True)
        return answer


def ending(code: int, log: Path) -> str:
    """Why a process ended: the signal, or the last line that it wrote."""
    if code < 0:
        return f"it ended with {code} ({signal.strsignal(-code)})"
    said = _said(log)
    return said[-1].strip() if said else f"it ended with {code}"


def _said(log: Path) -> list[str]:
    return [line for line in log.read_text(errors="replace").splitlines() if line.strip()]


@contextlib.contextmanager
def running(
    given: dict[str, dict[str, Any]], logs: Path
) -> Iterator[tuple[dict[str, Worker], dict[str, str]]]:
    """A worker for each name, loaded one after the other, and why a peer did not load.

    All of them end with the block.
    """
    logs.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        found, failed = {}, {}
        for name, fields in given.items():
            try:
                found[name] = Worker(name, fields, logs / f"{name}.log")
            except WorkerError as error:
                if name in (MACHINE, OURS):
                    raise
                failed[name] = error.reason
            else:
                stack.callback(found[name].stop)
        yield found, failed


def worker_command(name: str, given: dict[str, Any]) -> list[str]:
    """The command line of a worker, which is another program's where `given` names one."""
    return [sys.executable, "-m", given.get("program", "bench.worker"), name, json.dumps(given)]


def environment(name: str, device: str, threads: int) -> dict[str, str]:
    """Our clone first on the path, the device, and the number of threads, the same for all."""
    path = str(_ROOT)
    found = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": str(threads)}
    found |= {"JAX_PLATFORMS": "cpu" if device == "cpu" else "cuda", "HF_HUB_OFFLINE": "1"}
    if name in (MACHINE, OURS):  # they share the device with the others, and JAX takes most of it
        found |= {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        found.pop("XLA_CLIENT_MEM_FRACTION", None)
    found.pop("PYTHONDONTWRITEBYTECODE", None)  # modules are compiled once, as users have them
    return found
