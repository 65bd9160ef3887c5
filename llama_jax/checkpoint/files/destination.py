"""Where a checkpoint may be written: nowhere that is taken, and nowhere that it does not fit."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from llama_jax.checkpoint.files.atomic import LOCK, whole_directory
from llama_jax.checkpoint.files.messages import in_units

Extras = Callable[[Path], list[Path] | None]
"""What lies in a directory that writing one of its kind did not put there; None for another kind's
directory."""


@contextlib.contextmanager
def writing(
    dst: Path,
    kind: str,
    extras: Extras | None,
    nbytes: int,
    copies: Mapping[str, Path | bytes],
    *,
    what: str = "the checkpoint",
) -> Iterator[Path]:
    """A directory to fill, which becomes `dst` once it is whole; copies of files lie in it already.

    A copy is of a file, or bytes that lie in none.

    `nbytes` is what will be written beside them. Refused, before anything is written, are a disk
    without room and what is there already, but for an empty directory, or an older one of the
    `kind`. To replace that, `extras` says what in it is somebody's own; without it nothing is
    replaced. `what` names it in the errors of the system.
    """
    _check_destination(dst, kind, extras)
    with _naming(dst, what):
        _check_space(dst, nbytes + sum(map(_size, copies.values())))
        with whole_directory(dst) as partial:
            for name, content in copies.items():
                (partial / name).parent.mkdir(exist_ok=True)
                if isinstance(content, bytes):
                    (partial / name).write_bytes(content)
                else:
                    shutil.copyfile(content, partial / name)
            yield partial
            _check_destination(dst, kind, extras)  # again: somebody may have been there meanwhile


def _check_destination(dst: Path, kind: str, extras: Extras | None) -> None:
    if dst.is_mount():
        raise OSError(f"{dst} is a mount point and cannot be renamed to; name a directory in it")
    if not dst.exists() or (dst.is_dir() and not any(dst.iterdir())):
        return
    if extras is None:
        raise FileExistsError(f"{dst} is there already; remove it, or pass overwrite=True")
    added = extras(dst)
    if added is None:
        raise FileExistsError(
            f"{dst} is not {kind}, so it is not overwritten; remove it yourself, or write elsewhere"
        )
    if added := [file for file in added if file.name != LOCK]:
        raise FileExistsError(
            f"{dst} holds {min(added).relative_to(dst)}, which was not written with {kind}, so it "
            "is not overwritten; move that away first, or write elsewhere"
        )


def _size(content: Path | bytes) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def _check_space(dst: Path, needed: int) -> None:
    """Refuses beforehand what the disk has no room for."""
    there = next(parent for parent in dst.parents if parent.exists())
    disk = shutil.disk_usage(there)
    if disk.free < needed and disk.total:  # /proc and its like have no size
        raise OSError(
            f"{dst} needs {in_units(needed)} and {there} has {in_units(disk.free)} free; "
            "make room, or write elsewhere"
        )


@contextlib.contextmanager
def _naming(dst: Path, what: str) -> Iterator[None]:
    """Says of a system's error what it stopped; our own errors, which have no number, say so."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(f"cannot write {what} {dst}: {error}") from error
