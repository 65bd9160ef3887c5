"""Where a checkpoint came from: the record that one made of it keeps."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any

from llama_jax.checkpoint import native
from llama_jax.checkpoint.hub import pinned
from llama_jax.checkpoint.source import Source


def repository_of(source: Source) -> str | None:
    """The Hub's repository and commit that a checkpoint is, or was made of: "hf:ORG/NAME@COMMIT".

    A native checkpoint has it from its record, and passes it on to those made of it.
    """
    if source.format != "native":
        return pinned(source.path)
    said = native.read_info(source.path).get("source")
    found = said.get("repository") if isinstance(said, dict) else None
    return found if isinstance(found, str) and found.isprintable() else None


def origin(source: Source, sums: Sequence[str]) -> dict[str, Any]:
    """Where a checkpoint came from, for the record in the one made of it; `sums` are its files'."""
    files = [
        {"name": file.name, "bytes": file.stat().st_size, "sha256": digest}
        for file, digest in zip(source.files, sums, strict=True)
    ]
    folder = source.path.resolve()
    if source.path.is_file():  # in the Hub's cache a link, to a file that is named by its sum
        folder = source.path.parent.resolve() / source.path.name
    return {
        "path": str(folder),
        "repository": repository_of(source),
        "format": source.format,
        "files": files,
        "converted": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "notes": [*source.notes, *source.warnings],
    }
