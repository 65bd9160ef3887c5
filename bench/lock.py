"""One run at a time in a working folder: two would share its models, and the machine."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import filelock


@contextlib.contextmanager
def held(work: Path, command: str) -> Iterator[None]:
    """The folder, made if need be, for as long as the block runs; RuntimeError if another has it.

    The system lets go of it with its process, however that ends.
    """
    work.mkdir(parents=True, exist_ok=True)
    lock, holder = filelock.FileLock(work / "lock"), work / "holder.json"
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise RuntimeError(
            f"{_shown(holder)} measures with --work {work}, and two at once would disturb each "
            "other; wait for it"
        ) from None
    try:
        started = time.strftime("%H:%M")
        holder.write_text(json.dumps({"pid": os.getpid(), "command": command, "since": started}))
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _shown(holder: Path) -> str:
    try:
        found = json.loads(holder.read_text())
    except (OSError, ValueError):  # it is only just beginning
        return "another process"
    return f"process {found['pid']} ({found['command']}, since {found['since']})"
