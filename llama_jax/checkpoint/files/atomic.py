"""A directory that appears under its name whole, or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

_LOCK = "writing.lock"


@contextlib.contextmanager
def whole_directory(dst: Path) -> Iterator[Path]:
    """A new directory to fill: it becomes `dst` when the block ends, and vanishes when it raises.

    It lies beside `dst` as `.NAME.partial`. An older `dst` is replaced at the end, and is there
    until then. What a killed process left is removed; a live one, told by its lock, is left alone.
    """
    dst.parent.mkdir(parents=True, exist_ok=True)
    partial, former = (dst.with_name(f".{dst.name}.{what}") for what in ("partial", "former"))
    lock = _lock(partial, dst)
    try:
        try:
            _clear_leftovers(partial, former, dst)
            yield partial
            _sync(partial)
            _replace(dst, partial, former)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        with contextlib.suppress(OSError):  # dst is whole by now, whatever this says
            _sync(dst.parent)
            (dst / _LOCK).unlink()
            shutil.rmtree(former, ignore_errors=True)
    finally:
        os.close(lock)


def _lock(partial: Path, dst: Path) -> int:
    """Creates `partial` and locks a file in it: a lock ends with its process, however that ends."""
    import fcntl  # not on Windows, where the rest of the package may still be read

    while True:
        partial.mkdir(exist_ok=True)
        lock = os.open(partial / _LOCK, os.O_CREAT | os.O_RDWR)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise FileExistsError(
                f"another process is writing {dst}; wait for it, or write elsewhere"
            ) from None
        except OSError:
            return lock  # a file system without locks: two writers at once are then not noticed
        # The one who held the lock before may have renamed or removed the directory under it.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock), os.stat(partial / _LOCK)):
                return lock
        os.close(lock)


def _clear_leftovers(partial: Path, former: Path, dst: Path) -> None:
    for leftover in partial.iterdir():
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover)
        elif leftover.name != _LOCK:
            leftover.unlink()
    if former.exists() and not dst.exists():
        os.rename(former, dst)  # killed between the two renames of `_replace`
    shutil.rmtree(former, ignore_errors=True)


def _replace(dst: Path, partial: Path, former: Path) -> None:
    """Renames `partial` to `dst`; an older `dst` is `former` between the two renames."""
    if not dst.exists():
        os.rename(partial, dst)
        return
    os.rename(dst, former)
    try:
        os.rename(partial, dst)
    except BaseException:
        os.rename(former, dst)
        raise


def _sync(directory: Path) -> None:
    """Waits until the directory's own entries are on disk."""
    entry = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(entry)
    finally:
        os.close(entry)
