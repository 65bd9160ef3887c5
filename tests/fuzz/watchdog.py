"""A process that ends another which hangs: in a wait, in a loop, or in a library that holds Python.

It counts the processor's seconds while the other works and the wall's while it waits, so none in
which it is stopped or other programs have the processor, as on a busy machine.
"""

from __future__ import annotations

import contextlib
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
    hung, last, used = 0.0, beats[0], 0.0
    while os.getppid() == process:
        time.sleep(1)
        states, before, used = *_threads(process), used
        hung = 0.0 if beats[0] != last else hung + own_seconds(states, used - before)
        last = beats[0]
        if hung > seconds:
            os.kill(process, signal.SIGABRT)  # faulthandler prints where it was
            break
    os._exit(0)


def own_seconds(states: str, used: float) -> float:
    """How much of a second is a process's own, by its threads' states and processor time."""
    if states.strip("Tt") == "":
        return 0.0
    return min(used, 1.0) if "R" in states else 1.0


def _threads(process: int) -> tuple[str, float]:
    """The state of each thread, and the processor's seconds that all took, ended ones too."""
    folder, states = Path(f"/proc/{process}"), ""
    try:
        for file in folder.glob("task/*/stat"):
            with contextlib.suppress(OSError):  # this thread ended meanwhile
                states += _fields(file)[0]
        ticks = sum(map(int, _fields(folder / "stat")[11:13]))
    except OSError:  # the process did
        return "", 0.0
    return states, ticks / os.sysconf("SC_CLK_TCK")


def _fields(stat: Path) -> list[str]:
    """The fields after a program's name, which may have spaces and brackets."""
    return stat.read_text().rpartition(")")[2].split()
