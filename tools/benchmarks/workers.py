"""Starting processes and asking them, from the parent."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.worker import MACHINE

_ROOT = Path(__file__).resolve().parents[2]


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
        self.ready = self._answer()

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """The worker's answer; RuntimeError, with the end of its log, where it has none."""
        with contextlib.suppress(BrokenPipeError):  # it has ended, as the missing answer will tell
            self.process.stdin.write(json.dumps({"do": do, **request}) + "\n")
            self.process.stdin.flush()
        return self._answer()

    def stop(self) -> None:
        """Ends the process and waits for it."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def _answer(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        answer = json.loads(line) if line else {"error": f"it ended with {self.process.wait()}"}
        if "error" in answer:
            end = "".join(self.log.read_text().splitlines(keepends=True)[-15:])
            raise RuntimeError(f"{self.name}: {answer['error']}\n{end}")
        return answer


@contextlib.contextmanager
def running(given: dict[str, dict[str, Any]], logs: Path) -> Iterator[dict[str, Worker]]:
    """A worker for each name, loaded one after the other; all of them end with the block."""
    logs.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        found = {}
        for name, fields in given.items():
            found[name] = Worker(name, fields, logs / f"{name}.log")
            stack.callback(found[name].stop)
        yield found


def worker_command(name: str, given: dict[str, Any]) -> list[str]:
    """The command line of a worker."""
    return [sys.executable, "-m", "benchmarks.worker", name, json.dumps(given)]


def environment(name: str, device: str, threads: int) -> dict[str, str]:
    """Our clone first on the path, the device, and the number of threads, the same for all."""
    path = os.pathsep.join([str(_ROOT), str(_ROOT / "tools")])
    found = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": str(threads)}
    found |= {"JAX_PLATFORMS": "cpu" if device == "cpu" else "cuda", "HF_HUB_OFFLINE": "1"}
    if name == MACHINE:  # it shares the device with the contestants
        found |= {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        found.pop("XLA_CLIENT_MEM_FRACTION", None)
    return found
