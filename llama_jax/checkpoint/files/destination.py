"""Where a checkpoint may be written: nowhere that is taken, and nowhere that it does not fit."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path


def check_destination(dst: Path, replaceable: Callable[[Path], bool] | None) -> None:
    """Refuses what is there already, but for a directory that is empty or `replaceable`."""
    if dst.is_mount():
        raise OSError(f"{dst} is a mount point and cannot be renamed to; name a directory in it")
    if not dst.exists() or (dst.is_dir() and not any(dst.iterdir())):
        return
    if replaceable is None:
        raise FileExistsError(f"{dst} is there already; remove it, or ask to overwrite it")
    if not replaceable(dst):
        raise FileExistsError(
            f"{dst} is not a llama_jax checkpoint, so it is not overwritten; "
            "remove it yourself, or write elsewhere"
        )


def check_space(dst: Path, needed: int) -> None:
    """Refuses beforehand what the disk has no room for."""
    there = next(parent for parent in dst.parents if parent.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise OSError(
            f"{dst} needs {needed / 1e9:.2f} GB and {there} has {free / 1e9:.2f} GB free; "
            "make room, or write elsewhere"
        )


@contextlib.contextmanager
def naming(dst: Path) -> Iterator[None]:
    """Says of a system's error what it stopped; our own errors, which have no number, say so."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(f"cannot write the checkpoint {dst}: {error}") from error
