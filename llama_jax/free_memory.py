"""How much memory this machine, or the container that the process is in, can still give."""

from __future__ import annotations

import contextlib
from pathlib import Path

NO_LIMIT = 2**62
MACHINE = Path("/proc/meminfo")
CONTAINER = Path("/sys/fs/cgroup")


def free_memory() -> int:
    """Bytes of memory that can be taken; no limit where the system does not say."""
    return min(_free_of_machine(), _free_of_container())


def _free_of_machine() -> int:
    with contextlib.suppress(OSError, ValueError, StopIteration), MACHINE.open("rb") as lines:
        return int(next(x for x in lines if x.startswith(b"MemAvailable:")).split()[1]) * 1024
    return NO_LIMIT


def _free_of_container() -> int:
    """What a control group (v2) leaves to its processes; "max" is no limit."""
    with contextlib.suppress(OSError, ValueError):
        limit = int((CONTAINER / "memory.max").read_bytes())
        return max(0, limit - int((CONTAINER / "memory.current").read_bytes()))
    return NO_LIMIT
