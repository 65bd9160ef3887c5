"""One line about a wait that the next start will not have: XLA compiles, and the programs stay."""

from __future__ import annotations

import contextlib
import functools
import itertools
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from llama_jax.cli.console import stderr

if TYPE_CHECKING:
    from llama_jax.generation.results import Delta

LINE = "compiling the model's programs; they are kept, so the next start is faster"
COMPILED = "/jax/core/compile/backend_compile_duration"
_PATIENCE = 0.5  # seconds: trifles are compiled sooner


class Notice:
    """Hears of each program that is not kept yet, and says so of the first that takes long.

    A program that is read from the folder of kept ones is not heard of, however long that takes.
    """

    def __init__(self, say: Callable[[str], None], patience: float = _PATIENCE) -> None:
        self._say, self._patience = say, patience
        self._compiling: dict[int, threading.Timer] = {}
        self._lock, self._said, self._held = threading.Lock(), False, False

    def hear(self, event: str) -> None:
        """Takes an event: this thread will compile a program, or has compiled it."""
        from llama_jax.kept_programs import MISSED

        thread = threading.get_ident()
        if event in (MISSED, COMPILED) and (timer := self._compiling.pop(thread, None)):
            timer.cancel()
        if event == MISSED and not self._said:
            timer = threading.Timer(self._patience, self._tell)
            timer.daemon = True
            self._compiling[thread] = timer
            timer.start()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """A context in which nothing is said, since somebody types; afterwards, if it goes on."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
            if self._compiling:
                self._tell()

    @contextlib.contextmanager
    def in_text(self) -> Iterator[None]:
        """A context in which nothing is said, since a text is written into the same terminal.

        What is compiled as it begins is said before it, however short a time it has taken.
        """
        if self._compiling:
            self._tell()
        with self._lock:
            self._held = True
        try:
            yield
        finally:
            self._held = False

    def _tell(self) -> None:
        with self._lock:
            if not (self._said or self._held):
                self._say(LINE)
                self._said = True


@functools.cache
def notice_compiling() -> Notice:
    """From here on a long compilation is said on stderr, once, where the program is kept."""
    import jax

    notice = Notice(lambda line: stderr.print(line, style="dim"))
    jax.monitoring.register_event_listener(lambda event, **_: notice.hear(event))
    jax.monitoring.register_event_duration_secs_listener(lambda event, *_, **__: notice.hear(event))
    return notice


def unbroken(deltas: Iterator[Delta]) -> Iterator[Delta]:
    """The deltas of a text, into whose lines on a terminal no notice comes."""
    first = list(itertools.islice(deltas, 1))
    with notice_compiling().in_text() if sys.stdout.isatty() else contextlib.nullcontext():
        yield from itertools.chain(first, deltas)
