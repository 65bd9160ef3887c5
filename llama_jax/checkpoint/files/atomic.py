"""A directory that appears under its name whole, or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

LOCK = "writing.lock"
"""In a directory that is being written, and in one set aside: by its first line they are ours."""
OURS = b"llama_jax is writing here; what lies beside this file may be removed\n"


@contextlib.contextmanager
def whole_directory(dst: Path) -> Iterator[Path]:
    """A new directory to fill: it becomes `dst` when the block ends, and vanishes when it raises.

    It lies beside `dst` as `.NAME.partial`. An older `dst` is replaced at the end, and is there
    until then. What a killed process left is removed; a live one, told by its lock, is left alone.
    What another put under the two names, links above all, is neither used nor removed.
    """
    dst.parent.mkdir(parents=True, exist_ok=True)
    partial, former = (dst.with_name(f".{dst.name}.{what}") for what in ("partial", "former"))
    lock = _lock(partial, dst)
    try:
        try:
            _clear(partial)
            _clear_former(former, dst)
            yield partial
            _sync_tree(partial)
            _replace(dst, partial, former)
        except BaseException:
            _remove(partial)
            raise
        with contextlib.suppress(OSError):  # dst is whole by now, whatever this says
            _sync(dst.parent)
            (dst / LOCK).unlink()
            _remove(former)
    finally:
        os.close(lock)


def _lock(partial: Path, dst: Path) -> int:
    """Creates `partial` and locks a file in it: a lock ends with its process, however that ends."""
    while True:
        _make(partial)
        try:
            lock = os.open(partial / LOCK, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW)
        except FileNotFoundError:
            continue  # the one who held it has just renamed or removed it
        except OSError:
            with contextlib.suppress(OSError):
                partial.rmdir()  # empty, if it is ours
            raise
        try:
            if _holds(lock, partial, dst):
                _sign(lock, partial)
                return lock
        except BaseException:
            os.close(lock)  # it would hold the lock as long as this process lives
            raise
        os.close(lock)


def _holds(lock: int, partial: Path, dst: Path) -> bool:
    """Locks the file, and says whether it is still the one in `partial`."""
    import fcntl  # not on Windows, where the rest of the package may still be read

    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise FileExistsError(
            f"another process is writing {dst}; wait for it, or write elsewhere"
        ) from None
    except OSError:
        pass  # a file system without locks: two writers at once are then not noticed
    # The one who held the lock before may have renamed or removed the directory under it.
    try:
        return os.path.samestat(os.fstat(lock), os.stat(partial / LOCK))
    except FileNotFoundError:
        return False


def _sign(lock: int, partial: Path) -> None:
    """Says in the file whose it is. Where that fails, nothing is left."""
    try:
        if not os.fstat(lock).st_size:
            os.write(lock, OURS)
            os.fsync(lock)
    except OSError:
        _remove(partial)
        raise


def _make(partial: Path) -> None:
    try:
        partial.mkdir()
    except FileExistsError:
        with contextlib.suppress(FileNotFoundError):  # removed meanwhile, as whoever opens it sees
            _check_ours(partial)


def _check_ours(directory: Path) -> None:
    """Raises FileExistsError for what this project did not make, or another user did."""
    there = directory.lstat()
    if stat.S_ISDIR(there.st_mode) and there.st_uid == os.geteuid():
        entries = {entry.name for entry in directory.iterdir()}
        lock = directory / LOCK
        said = lock.read_bytes() if lock.is_file() and not lock.is_symlink() else b""
        # Killed at its very start, a writer leaves an empty lock or none: nothing can be lost.
        if said == OURS or (not entries - {LOCK} and not said and not lock.is_symlink()):
            return
    what = "a link" if stat.S_ISLNK(there.st_mode) else "there"
    raise FileExistsError(
        f"{directory} is {what}, and not from a writing of llama_jax that you began; it is not "
        "touched: move or remove it yourself, or write elsewhere"
    )


def _clear(directory: Path) -> None:
    """Removes all but the lock."""
    for entry in directory.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name != LOCK:
            entry.unlink()


def _remove(directory: Path) -> None:
    """Removes a directory of ours, the lock last: what a kill leaves of it is still known."""
    with contextlib.suppress(OSError):
        _clear(directory)
        (directory / LOCK).unlink()
        directory.rmdir()


def _clear_former(former: Path, dst: Path) -> None:
    if not os.path.lexists(former):
        return
    _check_ours(former)
    if dst.exists():
        _remove(former)
    else:
        os.rename(former, dst)  # killed between the two renames of `_replace`
        (dst / LOCK).unlink(missing_ok=True)


def _replace(dst: Path, partial: Path, former: Path) -> None:
    """Renames `partial` to `dst`; an older `dst` is `former` between the two renames."""
    if not dst.exists():
        os.rename(partial, dst)
        return
    (dst / LOCK).unlink(missing_ok=True)
    with (dst / LOCK).open("xb") as lock:
        lock.write(OURS)
    os.rename(dst, former)
    try:
        os.rename(partial, dst)
    except BaseException:
        os.rename(former, dst)
        (dst / LOCK).unlink()
        raise


def _sync_tree(directory: Path) -> None:
    """Waits until all below a directory is on disk, files before the directories that name them."""
    for folder, _, names in os.walk(directory, topdown=False):
        for name in names:
            file = Path(folder, name)
            if stat.S_ISREG(file.lstat().st_mode):
                _sync(file)
        _sync(Path(folder))


def _sync(path: Path) -> None:
    """Waits until a file's bytes, or a directory's own entries, are on disk."""
    entry = os.open(path, os.O_RDONLY)
    try:
        os.fsync(entry)
    finally:
        os.close(entry)
