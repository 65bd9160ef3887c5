"""What a server's process has used, as Linux counts it. Its children are not included."""

from __future__ import annotations

import os
from pathlib import Path


def memory(pid: int) -> int:
    """Bytes of its own that it holds: resident anonymous pages and those swapped out."""
    found = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
    )
    return sum(int(found[name].split()[0]) * 1024 for name in ("RssAnon", "VmSwap"))


def processor_seconds(pid: int) -> float:
    """Seconds of a core, in the program and in the system for it."""
    # The name, in brackets, may hold spaces.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
