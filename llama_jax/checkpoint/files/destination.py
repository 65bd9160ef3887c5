"""Where a checkpoint may be written: nowhere that is taken, and nowhere that it does not fit."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from llama_jax.checkpoint.files.atomic import LOCK
from llama_jax.checkpoint.files.refusal import in_units


def check_destination(
    dst: Path, kind: str, extras: Callable[[Path], list[Path] | None] | None
) -> None:
    """Refuses what is there already, but for an empty directory, or an older one of the `kind`.

    To replace that, `extras` says what lies in it that its writing did not put there: None where
    the directory is not of the kind. Without `extras` nothing is replaced.
    """
    if dst.is_mount():
        raise OSError(f"{dst} is a mount point and cannot be renamed to; name a directory in it")
    if not dst.exists() or (dst.is_dir() and not any(dst.iterdir())):
        return
    if extras is None:
        raise FileExistsError(f"{dst} is there already; remove it, or ask to overwrite it")
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


def check_space(dst: Path, needed: int) -> None:
    """Refuses beforehand what the disk has no room for."""
    there = next(parent for parent in dst.parents if parent.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise OSError(
            f"{dst} needs {in_units(needed)} and {there} has {in_units(free)} free; "
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
