"""The sums that a native checkpoint states of its own files, and whether they hold.

Every chunk of a weight carries a CRC-32C, which is checked as it is read. `checkpoint.json` states
the sha256 of every other file, and its own. A checkpoint from before that states none.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llama_jax.checkpoint.files.atomic import LOCK
from llama_jax.checkpoint.files.digests import sha256_of
from llama_jax.checkpoint.files.json_file import shown
from llama_jax.checkpoint.files.safe_paths import checker_of
from llama_jax.tokenizer.folder import READ

FILES, OWN = "sha256", "own_sha256"
_MAX_BYTES = 64 * 2**20
"""None of these files is larger, so a stranger's list takes no longer to check."""


def stated(info: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """What a manifest says, with the sums of the folder's files, and its own."""
    files = {f.relative_to(folder).as_posix(): f for f in folder.rglob("*") if f.is_file()}
    sums = {
        name: sha256_of(file)
        for name, file in sorted(files.items())
        if name != LOCK and not _is_chunk(name)
    }
    whole = {**info, FILES: sums}
    return {**whole, OWN: sum_of_rest(whole)}


def check_own(file: Path, info: Mapping[str, Any]) -> None:
    """ValueError where what a manifest says is not what was written."""
    if FILES not in info and OWN not in info:
        return
    if info.get(OWN) != sum_of_rest(info):
        raise ValueError(
            f"{file} does not have the checksum that it states, so it is damaged: write the "
            f"checkpoint again{_BY_HAND}"
        )


def check_files(folder: Path, manifest: Path, info: Mapping[str, Any]) -> None:
    """ValueError where a file is missing, or not the one that was written."""
    sums = info.get(FILES, {})
    if not isinstance(sums, Mapping):
        raise ValueError(f"{manifest} has {FILES}={shown(sums)}, which must be an object")
    check_inside = checker_of(folder)
    for name, expected in sums.items():
        if any(part in ("", ".", "..") for part in name.split("/")):  # one file, many names
            raise ValueError(f"{manifest} states a checksum of {shown(name)}, which is no file's")
        file = folder / name
        if not os.path.lexists(file):
            raise ValueError(f"{manifest} states a checksum of {shown(name)}, which is missing")
        check_inside(file)
        if (size := file.stat().st_size) > _MAX_BYTES:
            raise ValueError(f"{file} has {size:,} bytes, and no such file has over {_MAX_BYTES:,}")
        if expected != sha256_of(file):
            raise ValueError(
                f"{file} does not have the checksum that {manifest.name} states, so it is damaged: "
                f"copy or write the checkpoint again{_BY_HAND}"
            )
    if sums and info.get("tokenizer"):  # to one without, a person may add theirs
        _check_no_more(folder, manifest, sums)


def _check_no_more(folder: Path, manifest: Path, sums: Mapping[str, Any]) -> None:
    """ValueError where a file was added that would be read with the tokenizer."""
    for place in (folder / name for name in READ):
        for file in sorted(place.iterdir()) if place.is_dir() else [place]:
            if os.path.lexists(file) and file.relative_to(folder).as_posix() not in sums:
                raise ValueError(
                    f"{file} would be read, and {manifest.name} states no checksum of it, so it is "
                    f"not what was written: remove it{_BY_HAND}"
                )


_BY_HAND = f'; if that was you, take "{FILES}" and "{OWN}" out of checkpoint.json'


def _is_chunk(name: str) -> bool:
    """Whether a file, weights/NAME/c/..., holds values of a weight."""
    parts = name.split("/")
    return parts[0] == "weights" and parts[2:3] == ["c"]


def sum_of_rest(info: Mapping[str, Any]) -> str:
    """The sum of all that a manifest says but for the sum itself, however it is laid out."""
    said = {key: value for key, value in info.items() if key != OWN}
    text = json.dumps(said, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
