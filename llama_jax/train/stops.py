"""The wish that a run stops: SIGTERM or Ctrl-C in any process stops all after the same step."""

from __future__ import annotations

import contextlib
import queue
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P


@contextlib.contextmanager
def stop_signals(heard: Callable[[], None]) -> Iterator[Callable[[], bool]]:
    """Yields a function that says, once after each step, whether the run is to stop now.

    All processes call it equally often, and it says the same in all. `heard` is called once, in a
    thread, when this process is asked. A second Ctrl-C ends the process at once.
    """
    asked = threading.Event()
    stops = asked.is_set if jax.process_count() == 1 else asked_anywhere(asked)
    if threading.current_thread() is not threading.main_thread():  # which alone hears signals
        yield stops
        return

    def stop(number: int, frame: Any) -> None:
        if asked.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not asked.is_set():
            asked.set()
            waiting.put(heard)

    # A signal may come while a line is written, and Python refuses to write another inside it.
    waiting: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()

    def speak() -> None:
        with contextlib.suppress(OSError, ValueError):  # what the run says next meets it too
            waiting.get()()

    speaker = threading.Thread(target=speak, daemon=True)
    speaker.start()
    kept = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stops
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
        waiting.put(lambda: None)
        speaker.join()


def asked_anywhere(asked: threading.Event) -> Callable[[], bool]:
    """Whether any process of a job was asked, told by a collective behind each step.

    A call returns what all had told at the call before, so it does not wait for the newest step.
    JAX's own service for this (`reached_preemption_sync_point`) hears SIGTERM alone.
    """
    everywhere = Mesh(np.array(jax.devices()), ("processes",))
    parts, whole = (NamedSharding(everywhere, spec) for spec in (P("processes"), P()))
    largest = jax.jit(jnp.max, out_shardings=whole)
    told: list[jax.Array] = []

    def stops() -> bool:
        mine = np.full(1, asked.is_set(), np.int32)
        of_all = jax.make_array_from_callback((jax.device_count(),), parts, lambda index: mine)
        told.append(largest(of_all))
        return len(told) > 1 and bool(told.pop(0))

    return stops
