"""What a native checkpoint says of itself: `checkpoint.json` and `config.json`."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from llama_jax.config import Config

FORMAT, VERSION = "llama_jax", 1
INFO, CONFIG = "checkpoint.json", "config.json"


def is_native(path: str | os.PathLike[str]) -> bool:
    """Whether a checkpoint of this project lies there, of whatever version, whole or damaged."""
    return (Path(path) / INFO).is_file()


def read_info(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What `checkpoint.json` says."""
    path = Path(path)
    info = _json(path / INFO)
    version = info.get("version")
    if info.get("format") != FORMAT or not isinstance(version, int):
        raise ValueError(f"{path / INFO} was not written by llama_jax")
    if version > VERSION:
        raise ValueError(
            f"{path} was written by a newer version ({version}); this is llama_jax "
            f"{_package_version()}, which reads version {VERSION}; upgrade it"
        )
    return info


def read_config(path: str | os.PathLike[str]) -> Config:
    """The checkpoint's model."""
    read_info(path)
    file = Path(path) / CONFIG
    try:
        return Config.from_json(_json(file))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file}: {error}") from error


def is_ours(path: Path) -> bool:
    """Whether the directory says in so many words that this project wrote it."""
    with contextlib.suppress(ValueError):
        return _json(path / INFO).get("format") == FORMAT
    return False


def write_manifest(
    path: Path,
    config: Config,
    *,
    dtypes: Sequence[str],
    tokenizer: str | None,
    source: Mapping[str, Any] | None,
) -> None:
    """Writes both files. `dtypes` are the weights'; `tokenizer` is the name of its file."""
    info = {
        "format": FORMAT,
        "version": VERSION,
        "llama_jax": _package_version(),
        "dtype": dtypes[0] if len(dtypes) == 1 else "mixed",
        "tokenizer": tokenizer,
        "source": dict(source) if source is not None else None,
    }
    _write_json(path / CONFIG, config.to_json())
    _write_json(path / INFO, info)


def _json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{file} is missing; {file.parent} is no whole checkpoint") from None
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{file} holds a {type(value).__name__}, not a JSON object")
    return value


def _write_json(file: Path, value: dict[str, Any]) -> None:
    with file.open("w", encoding="utf-8") as out:
        out.write(json.dumps(value, indent=2) + "\n")
        out.flush()
        os.fsync(out.fileno())


def _package_version() -> str:
    try:
        return metadata.version("llama_jax")
    except metadata.PackageNotFoundError:
        return "(not installed)"
