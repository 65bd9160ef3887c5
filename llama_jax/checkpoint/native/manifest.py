"""What a native checkpoint says of itself: `checkpoint.json` and `config.json`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from llama_jax.checkpoint.files.json_file import read_object, shown, write_json
from llama_jax.checkpoint.files.safe_paths import check_inside
from llama_jax.checkpoint.native.checked import check_files, check_own, stated
from llama_jax.config import Config
from llama_jax.tokenizer.folder import FILES, is_there
from llama_jax.tokenizer.foreign import in_short

FORMAT = "llama_jax"
PLAIN, VERSION = 1, 2
"""Version 2 has weights that are no arrays; a checkpoint without any is still of version 1."""
INFO, CONFIG, WEIGHTS = "checkpoint.json", "config.json", "weights"
_ORBAX = ("_METADATA", "_CHECKPOINT_METADATA", "commit_success.txt")
"""What Orbax puts into `weights/` beside the weights."""


def is_native(path: str | os.PathLike[str]) -> bool:
    """Whether a checkpoint of this project lies there, of whatever version, whole or damaged.

    A file of the name that says another format, beside no `weights/`, is somebody else's.
    """
    path = Path(path)
    if not is_there(path / INFO):
        return False
    with contextlib.suppress(OSError, ValueError):
        return (path / WEIGHTS).is_dir() or _json(path / INFO).get("format") == FORMAT
    return True


@in_short()
def read_info(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What `checkpoint.json` says."""
    path = Path(path)
    info = _json(path / INFO)
    version = info.get("version")
    if info.get("format") != FORMAT or version is None:
        raise ValueError(f"{path / INFO} was not written by llama_jax")
    if type(version) is not int or version < 1:  # True is an int, and no version
        raise ValueError(
            f"{path / INFO} has version={shown(version)}, which must be an integer from 1; it is "
            "damaged, so write the checkpoint again"
        )
    if version > VERSION:
        raise ValueError(
            f"{path} was written by a newer version ({version}); this is llama_jax "
            f"{_package_version()}, which reads version {VERSION}; upgrade it"
        )
    check_own(path / INFO, info)
    return info


def weights_folder(path: str | os.PathLike[str]) -> Path:
    """The folder of a checkpoint's weights; ValueError where there is none."""
    weights = Path(path) / WEIGHTS
    check_spelled(weights)
    if not weights.is_dir():
        raise ValueError(f"{path} has no {WEIGHTS}/; the checkpoint is incomplete, write it again")
    return weights


def check_spelled(path: Path) -> None:
    """ValueError where the process's locale cannot spell a path: Orbax takes it as a text."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"{path} has letters that this process's locale cannot spell; run it with "
            "PYTHONUTF8=1, or in a UTF-8 locale"
        ) from None


@in_short()
def read_config(path: str | os.PathLike[str]) -> Config:
    """The checkpoint's model, once every file has the checksum that the manifest states of it."""
    info = read_info(path)
    file = Path(path) / CONFIG
    said = _json(file)
    try:
        config = Config.from_json(said)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file}: {error}") from error
    weights = weights_folder(path)
    # Before the table is made: a number in a stranger's file must not decide how long it gets.
    if config.n_layers > (held := len(os.listdir(weights))):
        raise ValueError(
            f"{file} says n_layers={config.n_layers}, and {weights} lacks most of such a model: "
            f"it holds {held} entries; one of the two is damaged or belongs to another model"
        )
    check_inside(Path(path), weights)
    check_files(Path(path), Path(path) / INFO, info)
    return config


def extras(path: Path) -> list[Path] | None:
    """What lies in a checkpoint that is not part of one; None where this project wrote none."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        info = _json(path / INFO)
        if info.get("format") == FORMAT:
            known = {INFO, CONFIG, WEIGHTS, info.get("tokenizer"), *FILES}
            found = [entry for entry in path.iterdir() if entry.name not in known]
            for entry in (path / WEIGHTS).iterdir() if (path / WEIGHTS).is_dir() else ():
                if entry.name not in _ORBAX and not (entry / "zarr.json").is_file():
                    found.append(entry)
            return found
    return None


def write_manifest(
    path: Path,
    config: Config,
    *,
    dtypes: Sequence[str],
    tokenizer: str | None,
    source: Callable[[], Mapping[str, Any]] | None,
    records: Mapping[str, Any],
) -> None:
    """Writes both files, once all others are there.

    `dtypes` are the weights'; `tokenizer` is the name of its file.

    `source` gives where the weights came from, and is asked last. `records` says, by name, what the
    weights are that are no arrays.
    """
    info = {
        "format": FORMAT,
        "version": VERSION if records else PLAIN,
        "llama_jax": _package_version(),
        "dtype": dtypes[0] if len(dtypes) == 1 else "mixed",
        "tokenizer": tokenizer,
        "source": dict(source()) if source is not None else None,
    }
    if records:
        info["weights"] = dict(records)
    write_json(path / CONFIG, config.to_json())
    write_json(path / INFO, stated(info, path))


def _json(file: Path) -> dict[str, Any]:
    if file.is_symlink():
        check_inside(file.parent, file)
    try:
        return read_object(file)
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{file} is missing; {file.parent} is no whole checkpoint") from None


def _package_version() -> str:
    try:
        return metadata.version("llama_jax")
    except metadata.PackageNotFoundError:
        return "(not installed)"
