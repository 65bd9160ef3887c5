"""How fast a text came, compiling left out, and how long compiling took."""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from llama_jax.cli.console import status

if TYPE_CHECKING:
    from llama_jax.generation.results import Delta

_SHORTEST = 0.05  # seconds of compiling worth a word


def counted(tokens: int) -> str:
    """How many tokens, in words: "1 token"."""
    return f"{tokens:,} token{'s' * (tokens != 1)}"


class CompileTimes:
    """When JAX traced and compiled, in any thread."""

    def __init__(self) -> None:
        import jax

        self._spans: list[tuple[float, float, int]] = []
        self._unkept = 0
        jax.monitoring.register_event_duration_secs_listener(self.note)
        jax.monitoring.register_event_listener(self.note_kept)

    @property
    def compiled_anew(self) -> bool:
        """Whether any program was compiled, and not read from a folder of kept ones."""
        return self._unkept > 0

    def note_kept(self, event: str, **kwargs: str | int) -> None:
        """Takes an event of JAX's: a program was read from the folder of kept ones, say."""
        self._unkept -= event == "/jax/compilation_cache/cache_hits"

    def note(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        """Takes a span of JAX's, which has just ended in this thread."""
        if event.startswith("/jax/core/compile/"):
            now = time.perf_counter()
            self._unkept += event.endswith("/backend_compile_duration")
            self._spans.append((now - duration_secs, now, threading.get_ident()))

    def between(self, start: float, end: float, thread: int | None = None) -> float:
        """Seconds from `start` to `end` in which something was compiled, or in one thread alone.

        One span may hold another, and threads compile at once: no second counts twice.
        """
        total, reached = 0.0, start
        for begin, until, where in sorted(self._spans):
            if thread not in (None, where):
                continue
            begin, until = max(begin, reached), min(until, end)
            if until > begin:
                total, reached = total + until - begin, until
        return total


@functools.cache
def compile_times() -> CompileTimes:
    """Those of this process: JAX keeps a listener as long as it runs."""
    return CompileTimes()


class Speed:
    """Watches a stream: when the first token came, and how fast the others did."""

    def __init__(self) -> None:
        self.times = compile_times()
        self._made = time.perf_counter()
        self._started = self._first = self._last = self._made
        self.tokens = 0
        self._gains: Counter[int] = Counter()  # how often each row has gained something
        self._steady = 0.0
        self._followed = 0

    def watch(self, deltas: Iterator[Delta]) -> Iterator[Delta]:
        """The deltas, and until the first a line that says what is waited for."""
        self._started = time.perf_counter()
        with contextlib.ExitStack() as waiting:
            waiting.enter_context(status("getting the model ready for prompts of this length"))
            for delta in deltas:
                waiting.close()
                self._note(delta, time.perf_counter())
                yield delta

    def _note(self, delta: Delta, now: float) -> None:
        """The prefill gives a row's first tokens, and the loop its second."""
        if not self._gains:
            self._first = now
        self._last = now
        self.tokens += len(delta.tokens)
        self._gains[delta.row] += 1
        if self._gains[delta.row] == 2 and not self._steady:
            self._steady = now
        if self._gains[delta.row] > 2:
            self._followed += len(delta.tokens)

    def summary(self) -> str:
        """The speed in one line; the first token's time and the speed are without compiling."""
        compiled = self.times.between(self._made, self._last)
        doing = "compiling" if self.times.compiled_anew else "reading the kept programs"
        said = f"; {doing} took {compiled:.2f} s more" if compiled > _SHORTEST else ""
        if not self.tokens:
            return "no tokens" + said
        # The loop is compiled in another thread, while this one waits for the first token.
        first = self._net(self._started, self._first, threading.get_ident())
        after = f"{first:.2f} s" if first >= 0.1 else f"{first * 1000:.0f} ms"
        text = f"{counted(self.tokens)}; the first after {after}"
        seconds = self._net(self._steady, self._last)
        if self._followed and seconds > 0:
            text += f", then {self._followed / seconds:,.1f} tokens/s"
        return text + said

    def _net(self, start: float, end: float, thread: int | None = None) -> float:
        return end - start - self.times.between(start, end, thread)
