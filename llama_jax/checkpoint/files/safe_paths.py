"""What lies in a checkpoint's folder: files, and no link that leads out of it unasked."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from llama_jax.checkpoint.files.messages import FETCH_AGAIN
from llama_jax.tokenizer.folder import given_path

LINKS = "LLAMA_JAX_LINKS"
"""The environment variable that names folders which links of a checkpoint may lead into."""


def check_inside(folder: Path, file: Path, also: Path | None = None) -> None:
    """Raises ValueError where a link leads out of the folder, but for `also` and what is allowed.

    What is neither a file nor a folder is refused too: to read a pipe is to wait for ever.

    The Hub's cache is a folder of links, snapshots/REVISION/NAME to blobs/HASH beside snapshots;
    Meta's files may lie in a folder of it.
    """
    checker_of(folder, also)(file)


def checker_of(folder: Path, also: Path | None = None) -> Callable[[Path], None]:
    """`check_inside` for many files of one folder, which is looked at once."""
    whole = folder.resolve()
    within = [whole, *([also] if also else []), *_allowed()]
    for snapshot in (whole, whole.parent):
        if snapshot.parent.name == "snapshots":
            within.append(snapshot.parent.parent / "blobs")

    def check(file: Path) -> None:
        try:
            target = file.resolve(strict=True)
        except (OSError, RuntimeError) as error:
            reason = f"{file} is a link that leads nowhere ({error}); {FETCH_AGAIN}"
            raise ValueError(reason) from error
        if not any(target.is_relative_to(place) for place in within):
            raise ValueError(
                f"{file} is a link out of the folder, to {target}; put the file itself there, or "
                f"allow links into that folder, if you trust it: {LINKS}={target.parent}"
            )
        if not (target.is_file() or target.is_dir()):
            raise ValueError(_no_file(file))

    return check


def check_tree(folder: Path, directory: Path) -> None:
    """Raises ValueError where `directory`, or a link anywhere in it, leads out of the folder."""
    check = checker_of(folder)
    check(directory)
    for entry in entries(directory):
        if entry.is_symlink():
            check(Path(entry.path))
        elif not (entry.is_file() or entry.is_dir()):
            raise ValueError(_no_file(entry.path))


def entries(directory: Path | str) -> Iterator[os.DirEntry[str]]:
    """All that lies in a directory, however deep; a link is not followed."""
    with os.scandir(directory) as here:
        for entry in here:
            yield entry
            if entry.is_dir(follow_symlinks=False):
                yield from entries(entry.path)


def _allowed() -> list[Path]:
    """The folders that the user lets links lead into."""
    named = os.environ.get(LINKS, "").split(os.pathsep)
    return [given_path(folder).resolve() for folder in named if folder]


def _no_file(path: Path | str) -> str:
    return f"{path} is a pipe, a socket or a device, and no file; {FETCH_AGAIN}"
