"""One line about a wait that the next start will not have: XLA compiles, and the programs stay."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

from llama_jax.cli.console import stderr

LINE = "compiling the model's programs for this machine; they are kept, so the next start is faster"
_LOWERED = "/jax/core/compile/jaxpr_to_mlir_module_duration"
_COMPILED = "/jax/core/compile/backend_compile_duration"
_PATIENCE = 2.5  # seconds: a program that lies in the cache is there sooner


class Notice:
    """Hears of each program that JAX gives to XLA, and says so of the first that takes long."""

    def __init__(self, say: Callable[[str], None], patience: float = _PATIENCE) -> None:
        self._say, self._patience = say, patience
        self._waiting: dict[int, threading.Timer] = {}
        self._lock, self._said = threading.Lock(), False

    def hear(self, event: str, duration_secs: float, **_: str | int) -> None:
        """Takes an event of JAX's: a program is about to be compiled, or it is compiled."""
        thread = threading.get_ident()
        if event in (_LOWERED, _COMPILED) and (timer := self._waiting.pop(thread, None)):
            timer.cancel()
        if event == _LOWERED and not self._said:
            timer = threading.Timer(self._patience, self._tell)
            timer.daemon = True
            self._waiting[thread] = timer
            timer.start()

    def _tell(self) -> None:
        import jax

        with self._lock:
            kept: Any = jax.config
            if not self._said and kept.jax_compilation_cache_dir:  # else no program is kept
                self._say(LINE)
            self._said = True


@functools.cache
def notice_compiling() -> None:
    """From here on a long compilation is said on stderr, once."""
    import jax

    notice = Notice(lambda line: stderr.print(line, style="dim"))
    jax.monitoring.register_event_duration_secs_listener(notice.hear)
