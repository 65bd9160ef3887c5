"""Links in a checkpoint's folder: none may lead out of it, to files that are not the model's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from llama_jax.checkpoint.files.messages import FETCH_AGAIN


def check_inside(folder: Path, file: Path, also: Path | None = None) -> None:
    """Raises ValueError where a link leads out of the folder, but for `also`.

    The Hub's cache is a folder of links, snapshots/REVISION/NAME to blobs/HASH beside snapshots;
    Meta's files may lie in a folder of it.
    """
    whole = folder.resolve()
    within = [whole, *([also] if also else [])]
    for snapshot in (whole, whole.parent):
        if snapshot.parent.name == "snapshots":
            within.append(snapshot.parent.parent / "blobs")
    try:
        target = file.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{file} is a link that leads nowhere ({error}); {FETCH_AGAIN}") from error
    if not any(target.is_relative_to(place) for place in within):
        raise ValueError(
            f"{file} is a link out of the folder, to {target}; put the file itself there"
        )


def check_tree(folder: Path, directory: Path) -> None:
    """Raises ValueError where `directory`, or a link anywhere in it, leads out of the folder."""
    check_inside(folder, directory)
    for entry in _entries(directory):
        if entry.is_symlink():
            check_inside(folder, Path(entry.path))


def _entries(directory: Path | str) -> Iterator[os.DirEntry[str]]:
    """All that lies in a directory, however deep; a link is not followed."""
    with os.scandir(directory) as entries:
        for entry in entries:
            yield entry
            if entry.is_dir(follow_symlinks=False):
                yield from _entries(entry.path)
