"""JSON: a stranger's, small, one object, its values of the types they should be; and ours."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from llama_jax.checkpoint.files.messages import FETCH_AGAIN
from llama_jax.tokenizer.folder import is_there

_MAX_BYTES = 4 * 2**20


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in `file`; every error is a ValueError that names it."""
    is_there(file)  # or an error says what else is
    with file.open("rb") as opened:
        text = opened.read(_MAX_BYTES + 1)
    if len(text) > _MAX_BYTES:
        raise ValueError(f"{file} has more than {_MAX_BYTES:,} bytes; it is not a model's")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not JSON ({error}); {FETCH_AGAIN}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file} holds a {type(found).__name__}, not an object; {FETCH_AGAIN}")
    return found


def write_json(file: Path, value: Any) -> None:
    """Writes a file that is not there yet, and waits until it is on disk.

    Letters are written as they are: an escape means the same in capitals, so a flipped bit of it
    would pass.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # a path that is no text
        text = json.dumps(value, indent=2)
    with file.open("x", encoding="utf-8") as out:
        out.write(text + "\n")
        out.flush()
        os.fsync(out.fileno())


def replace_text(file: Path, text: str) -> None:
    """Writes a file whole or not at all, in place of one that may be there."""
    half = file.with_name(file.name + ".partial")
    with half.open("w", encoding="utf-8") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    half.replace(file)


class Fields:
    """An object's values by key, checked as they are asked for. A null is no value."""

    def __init__(self, given: dict[str, Any]) -> None:
        self._given = {key: value for key, value in given.items() if value is not None}

    def __contains__(self, key: str) -> bool:
        return key in self._given

    def require(self, *keys: str) -> None:
        """ValueError names those that are not there."""
        if missing := [key for key in keys if key not in self]:
            raise ValueError(
                f"it lacks {' and '.join(missing)}, which nothing else says; {FETCH_AGAIN}, or add "
                "what the model's publisher states"
            )

    def raw(self, key: str) -> Any:
        """A value of any type, or None."""
        return self._given.get(key)

    def count(self, key: str, default: int | None = None) -> int:
        """A positive integer."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**31:
            raise ValueError(f"{key}={shown(value)} must be a positive integer below 2**31")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A positive number."""
        value = self._get(key, default)
        real = isinstance(value, int | float) and not isinstance(value, bool)
        if not real or not 0 < value < 2**63:
            raise ValueError(f"{key}={shown(value)} must be a positive number")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise ValueError(f"{key}={shown(value)} must be true or false")
        return value

    def _get(self, key: str, default: Any) -> Any:
        if key in self._given:
            return self._given[key]
        if default is None:
            self.require(key)
        return default


def shown(value: Any) -> str:
    """A value from a file, fit to stand in a message."""
    text = f"a {type(value).__name__}" if isinstance(value, dict | list) else json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
