"""A guard of a conversation: one thread iterates at a time, and another gets a ValueError."""

from __future__ import annotations

import threading
from collections.abc import Generator
from typing import Any, TypeVar

T = TypeVar("T")


class OneThread:
    """Runs iterators of which one thread's alone may be in progress."""

    def __init__(self) -> None:
        self._step = threading.Lock()
        self._running: tuple[object, int] | None = None
        """The iterator in progress, and the thread that last took a step of it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return OneThread, ()  # a copy is another's

    def alone(self, items: Generator[T, None, None]) -> Generator[T, None, None]:
        """The items; ValueError where another thread's iterator is in progress.

        An iterator may go from thread to thread between two items.
        """
        this = object()
        try:
            while True:
                self._enter(this)
                try:
                    item = next(items)
                except StopIteration:
                    return
                finally:
                    self._step.release()
                yield item
        finally:
            items.close()
            if self._running is not None and self._running[0] is this:
                self._running = None

    def _enter(self, this: object) -> None:
        me, running = threading.get_ident(), self._running
        others = running is not None and running[0] is not this and running[1] != me
        if others or not self._step.acquire(blocking=False):
            raise ValueError(
                "another thread's answer of this Conversation is in progress; take it to its end "
                "or close it first, or give each thread a Conversation of its own"
            )
        self._running = this, me
