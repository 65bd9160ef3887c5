"""A path as a person gives it."""

from __future__ import annotations

import os
from pathlib import Path


def given_path(path: str | os.PathLike[str]) -> Path:
    """The path, where it begins with ~ in the user's home."""
    return Path(os.path.expanduser(path))
