"""A process that ends another which hangs: in a wait, in a loop, or in a library that holds Python.

It counts seconds of its own, and none in which the other is stopped, as by a job control or by
whoever measures on a quiet machine: a clock on the wall would count those.
"""

from __future__ import annotations

import faulthandler
import mmap
import os
import signal
import time
import warnings
from collections.abc import Callable
from pathlib import Path


def watched(seconds: int) -> tuple[Callable[[], None], Callable[[], None]]:
    """Has this process ended, with its traceback, once it does not beat for so long.

    Returns what beats, and what ends the watch.
    """
    faulthandler.enable()
    beats = mmap.mmap(-1, 1)
    process = os.getpid()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # JAX warns of every fork, and the child runs none of it
        watcher = os.fork()
    if not watcher:
        _watch(process, beats, seconds)

    def beat() -> None:
        beats[0] = (beats[0] + 1) % 256

    def end() -> None:
        os.kill(watcher, signal.SIGKILL)
        os.waitpid(watcher, 0)

    return beat, end


def _watch(process: int, beats: mmap.mmap, seconds: int) -> None:
    for ends in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ends, signal.SIG_IGN)  # the other says when this one ends
    waited, last = 0, beats[0]
    while os.getppid() == process:
        time.sleep(1)
        waited = 0 if beats[0] != last else waited + (not _is_stopped(process))
        last = beats[0]
        if waited > seconds:
            os.kill(process, signal.SIGABRT)  # faulthandler prints where it was
            break
    os._exit(0)


def _is_stopped(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] in "Tt"
    except OSError:
        return False
