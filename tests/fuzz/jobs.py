"""`python -m tests.fuzz.jobs`: jobs that lose a process, and jobs that begin among strangers.

Each process is a child of one that has imported JAX, so a job costs about a second.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import random
import signal
import socket
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]
os.environ["JAX_PLATFORMS"] = "cpu"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from job import free_port  # noqa: E402

from llama_jax import distributed, make_mesh  # noqa: E402

MAX_SECONDS, MAX_LINES = 3.0, 5
STATES = ("collective", "host", "mixed", "busy")
"""What they do then: a collective; nothing; a collective, but process 0 nothing; a long C call."""


@dataclasses.dataclass(frozen=True)
class Ended:
    """How one survivor ended."""

    process: int
    seconds: float
    code: int
    said: list[str]

    def wrong(self, victim: int) -> bool:
        """Whether it breaks what docs/security.md promises."""
        named = any(f"process {victim} (on " in one and "died" in one for one in self.said)
        late = self.seconds > MAX_SECONDS or len(self.said) > MAX_LINES
        return late or self.code in (0, -signal.SIGKILL) or not named


def kill_one(number: int) -> tuple[str, list[Ended], int]:
    """One job, its shape and its victim drawn from `number`, and how the others ended."""
    rng = random.Random(number)
    processes, state = rng.choice([2, 2, 3]), rng.choice(STATES)
    victim, port = rng.randrange(processes), free_port()
    with tempfile.TemporaryDirectory() as folder:
        heard, working = os.pipe()
        logs = [Path(folder) / str(process) for process in range(processes)]
        children = [
            forked(logs[i], lambda i=i: _work(processes, i, port, state, working))
            for i in range(processes)
        ]
        try:
            for _ in children:
                assert os.read(heard, 1), "a process ended before it worked"
            time.sleep(rng.random() * 0.2)
            before = [len(_lines(log)) for log in logs]
            os.kill(children[victim], signal.SIGKILL)
            ended = _ends(children, logs, before, victim)
        finally:
            for pid in children:
                _ended_now(pid)
            os.close(heard)
            os.close(working)
    return f"{processes} processes, {state}, victim {victim}", ended, victim


def start(idle: int) -> float:
    """Seconds in which a job of two begins to work, once so many strangers have connected."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as strangers:
        heard, working = os.pipe()
        logs = [Path(folder) / str(process) for process in range(2)]
        children = [forked(logs[0], lambda: _work(2, 0, port, "host", working))]
        try:
            for _ in range(idle + 1):
                strangers.enter_context(_connected(port))
            began = time.monotonic()
            children.append(forked(logs[1], lambda: _work(2, 1, port, "host", working)))
            for _ in children:
                assert os.read(heard, 1), "a process ended before it worked"
            return time.monotonic() - began
        finally:
            for pid in children:
                _ended_now(pid)
            os.close(heard)
            os.close(working)


def _connected(port: int) -> socket.socket:
    for _ in range(500):
        with contextlib.suppress(OSError):
            return socket.create_connection(("127.0.0.1", port), timeout=10)
        time.sleep(0.02)
    raise AssertionError("process 0 never listened")


def forked(log: Path, action: Callable[[], None]) -> int:
    """A child that does one thing; what it prints goes into a file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # JAX warns of every fork, and this process has no threads
        pid = os.fork()
    if pid:
        return pid
    into = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(into, 1)
    os.dup2(into, 2)
    try:
        action()
        os._exit(0)
    except BaseException:
        sys.excepthook(*sys.exc_info())  # as Python does at the end of a program
        os._exit(1)


def _work(processes: int, process: int, port: int, state: str, working: int) -> None:
    distributed.initialize(f"127.0.0.1:{port}", processes, process, start_timeout=60)
    mesh = make_mesh(tensor=processes)
    split, whole = (jax.NamedSharding(mesh, jax.P(*axes)) for axes in (["tensor"], []))
    total = jax.jit(jnp.sum, out_shardings=whole)
    part = jax.make_array_from_callback((processes,), split, lambda index: jnp.ones(1))
    assert float(total(part)) == processes
    os.write(working, b"x")
    while True:
        if state == "host" or (state == "mixed" and not process):
            time.sleep(0.01)
        elif state == "busy":
            sum(range(10**6))  # no other thread of the process runs meanwhile
        else:
            float(total(part))


def _lines(log: Path) -> list[str]:
    return log.read_text(errors="replace").splitlines()


def _ends(children: list[int], logs: list[Path], before: list[int], victim: int) -> list[Ended]:
    began, ended = time.monotonic(), []
    left = {i: pid for i, pid in enumerate(children) if i != victim}
    while left and time.monotonic() < began + 60:
        for i, pid in list(left.items()):
            if (code := _ended(pid)) is not None:
                del left[i]
                said = _lines(logs[i])[before[i] :]
                ended.append(Ended(i, time.monotonic() - began, code, said))
        time.sleep(0.01)
    return [*ended, *(Ended(i, 60.0, 0, ["it did not end"]) for i in left)]


def _ended(pid: int) -> int | None:
    found, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def _ended_now(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        pass


def kills(first: int, count: int) -> bool:
    """Whether all of so many jobs ended as they should; prints those that did not."""
    slowest, longest, wrong = 0.0, 0, 0
    for number in range(first, first + count):
        shape, ended, victim = kill_one(number)
        slowest = max(slowest, *(one.seconds for one in ended))
        longest = max(longest, *(len(one.said) for one in ended))
        bad = [one for one in ended if one.wrong(victim)]
        wrong += bool(bad)
        for one in bad:
            words = "\n    ".join(line[:160] for line in one.said[:12])
            print(
                f"{number} ({shape}): process {one.process} ended with {one.code} after "
                f"{one.seconds:.1f} s and {len(one.said)} lines:\n    {words}"
            )
    print(
        f"{count - wrong} of {count} jobs ended as they should; the slowest process took "
        f"{slowest:.1f} s, the longest output has {longest} lines",
        flush=True,
    )
    return not wrong


def starts(idle: int) -> bool:
    """Whether strangers delay the start of a job by at most a second, of five starts in turn."""
    seconds: dict[int, list[float]] = {0: [], idle: []}
    for _ in range(5):
        for count, found in seconds.items():
            found.append(start(count))
    alone, among = (statistics.median(found) for found in seconds.values())
    print(
        f"a job of two begins after {alone:.2f} s, and among {idle:,} idle connections after "
        f"{among:.2f} s (medians of 5; the slowest {max(seconds[0]):.2f} and "
        f"{max(seconds[idle]):.2f} s)"
    )
    return among < alone + 1


def main() -> None:
    said = argparse.ArgumentParser(prog="python -m tests.fuzz.jobs", description=__doc__)
    said.add_argument("--kills", type=int, default=10, help="how many jobs lose a process")
    said.add_argument("--first", type=int, default=0, help="the first job's number")
    said.add_argument("--idle", type=int, default=1000, help="how many strangers a start has")
    given = said.parse_args()
    fine = kills(given.first, given.kills) if given.kills else True
    fine = (starts(given.idle) if given.idle else True) and fine
    raise SystemExit(0 if fine else 1)


if __name__ == "__main__":
    main()
