"""What other threads ask of the engine's thread: new requests, cancels, the end."""

from __future__ import annotations

import dataclasses
import threading
import time

from llama_jax.serve.stream import EngineClosedError, Stream
from llama_jax.serve.writing import Writing

IDLE_SECONDS = 0.5
"""How long the engine's thread sleeps where nothing is asked; then it shows that it lives."""


@dataclasses.dataclass(frozen=True)
class Asked:
    """What was asked since the last time."""

    new: list[list[Writing]]
    """The completions of each new request."""
    cancelled: list[Stream]


class Inbox:
    """Requests on their way to the engine's thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._new: list[list[Writing]] = []
        self._cancelled: list[Stream] = []
        self.closed = False
        """Whether no more requests are taken."""
        self.beat = time.monotonic()
        """When the engine's thread last looked."""

    @property
    def requests(self) -> int:
        """How many requests lie here."""
        return len(self._new)

    @property
    def tokens(self) -> int:
        """The tokens of their prompts."""
        return sum(len(request[0].line.prompt) for request in list(self._new))

    def put(self, request: list[Writing]) -> None:
        """Another request. EngineClosedError after `close`."""
        with self._changed:
            if self.closed:
                raise EngineClosedError("the engine is closing; send the request elsewhere")
            self._new.append(request)
            self._changed.notify()

    def cancel(self, *streams: Stream) -> None:
        """These requests are to end."""
        with self._changed:
            self._cancelled += streams
            self._changed.notify()

    def close(self) -> None:
        """Nothing more may be put here."""
        with self._changed:
            self.closed = True
            self._changed.notify()

    def take(self, *, wait: bool) -> Asked:
        """All that was asked. With `wait` it waits until something is, or it is closed."""
        with self._changed:
            self.beat = time.monotonic()
            while wait and not (self._new or self._cancelled or self.closed):
                self._changed.wait(IDLE_SECONDS)
                self.beat = time.monotonic()
            asked = Asked(self._new, self._cancelled)
            self._new, self._cancelled = [], []
            return asked
