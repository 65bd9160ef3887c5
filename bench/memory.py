"""How much memory a process has ever had resident, as the kernel counts it."""

from __future__ import annotations

import resource
from pathlib import Path


def peak_resident() -> int:
    """This process's peak, in bytes, mapped files included."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no VmHWM; this needs Linux")


def peak_of_children() -> int:
    """The largest peak of the processes that this one has started and waited for, in bytes."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
