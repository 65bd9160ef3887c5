"""The watch over a job's lines: when one process ends badly, all say why and end."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import queue
import selectors
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

from llama_jax.distributed.connection import Line, words

OVER = "; the job is over"
GRACE = 1.0
"""Seconds between the first word of trouble and the verdict: what a death broke also complains."""
FAREWELL = 1.0
"""Seconds that process 0 waits for the others to end before it ends itself."""


@dataclasses.dataclass(frozen=True)
class Trouble:
    """What process 0 has heard of one process."""

    process: int
    died: bool
    said: str | None

    @property
    def rank(self) -> tuple[bool, int]:
        """The least is the cause: a death explains the errors of others."""
        return not self.died, self.process


class Watch(threading.Thread):
    """Reads every line of this process for as long as it lives. Host state."""

    def __init__(self, process: int, lines: dict[int, Line], hosts: dict[int, str]) -> None:
        super().__init__(daemon=True, name="llama_jax.distributed")
        self.process, self.lines, self.hosts = process, lines, hosts
        self._shared: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._left: set[int] = set()
        self._troubles: queue.SimpleQueue[Trouble] = queue.SimpleQueue()
        self._explain: Callable[[], None] | None = None

    def run(self) -> None:
        heard: list[Trouble] = []
        verdict = float("inf")
        with selectors.DefaultSelector() as selector:
            for number, line in self.lines.items():
                selector.register(line, selectors.EVENT_READ, number)
                self._read(number)  # what came together with the end of the roll call
            while True:
                for key, _ in selector.select(0.1):
                    self.lines[key.data].receive()
                    self._read(key.data)
                    if not self.lines[key.data].open:
                        selector.unregister(key.fileobj)
                while not self._troubles.empty():
                    heard.append(self._troubles.get())
                    verdict = min(verdict, time.monotonic() + GRACE)
                if time.monotonic() >= verdict:
                    self._end(heard)

    def fail(self, said: str | None, explain: Callable[[], None] | None = None) -> NoReturn:
        """Ends the job for a reason of this process's own; process 0 says which if several have.

        `explain` prints more about it, a traceback. It is called if this reason is the one.
        """
        self._explain = explain
        if self.process == 0:
            self._troubles.put(Trouble(0, died=False, said=said))
        else:
            self.lines[0].send(failed=said)
        time.sleep(10 * GRACE)  # the watch ends the process before that
        self._over(self.process, said)

    def leave(self) -> None:
        """Says that this process ends as it should."""
        for line in self.lines.values():
            line.send(left=True)

    def share(self, value: Any) -> None:
        """Sends a value of process 0's to every other process."""
        for line in self.lines.values():
            line.send(shared=value)

    def received(self) -> Any:
        """The next value that process 0 shares; where the job ends first, so does the process."""
        return self._shared.get()

    def _read(self, number: int) -> None:
        for message in self.lines[number].take():
            if "shared" in message:
                self._shared.put(message["shared"])
            elif "left" in message:
                self._left.add(number)
            elif "failed" in message:
                self._troubles.put(Trouble(number, died=False, said=_said(message["failed"])))
            elif "over" in message:
                self._over(message.get("cause"), _said(message["over"]))
        if not self.lines[number].open and number not in self._left:
            if self.process:
                self._over(0, f"{self._named(0)} died{OVER}")
            self._troubles.put(Trouble(number, died=True, said=None))

    def _end(self, heard: list[Trouble]) -> NoReturn:
        """Process 0 tells all, and is the last to go: its end alone would look like a death."""
        cause = min(heard, key=lambda trouble: trouble.rank)
        said = told = cause.said
        if cause.died:
            said = told = f"{self._named(cause.process)} died{OVER}"
        elif cause.process:
            said = told = f"{self._named(cause.process)}: {cause.said}{OVER}"
        elif len(heard) > 1:  # a mistake that all have met is told once
            told = None
        elif told is not None:
            told = f"process 0: {told}{OVER}"
        for line in self.lines.values():
            line.send(over=told, cause=cause.process)
        until = time.monotonic() + FAREWELL
        for line in self.lines.values():
            while line.open and time.monotonic() < until:
                line.connection.settimeout(max(0.01, until - time.monotonic()))
                line.receive()
        self._over(cause.process, said)

    def _over(self, cause: object, said: str | None) -> NoReturn:
        if cause == self.process and self._explain is not None:
            with contextlib.suppress(Exception):
                self._explain()
        _exit(said)

    def _named(self, number: int) -> str:
        return f"process {number} (on {self.hosts[number]})"


def _said(told: object) -> str | None:
    return None if told is None else words(told)


def _exit(said: str | None) -> NoReturn:
    """Ends the process from any thread: its own may hang in a collective for ever."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    if said is not None:
        # The descriptor, since all but process 0 have their `sys.stderr` silenced.
        os.write(2, f"error: {said}\n".encode())
    os._exit(1)
