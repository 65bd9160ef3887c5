"""What a result was measured from, and where its numbers are kept."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
NOTES = ROOT / "docs" / "notes"
PUBLISHED = NOTES / "bench"
LARGEST = 200_000
"""Bytes of numbers that are kept in the repository."""


def command(arguments: Sequence[str], module: str = "bench") -> str:
    """What was typed, for whoever repeats it: a path outside the clone is its name alone."""
    return shlex.join(["python", "-m", module, *map(_anywhere, arguments)])


def _anywhere(argument: str) -> str:
    option, equals, value = argument.rpartition("=")
    path = Path(value)
    if not path.is_absolute():
        return argument
    named = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path.name
    return f"{option}{equals}{named}"


def keep(path: Path, result: dict[str, Any]) -> None:
    """Writes the numbers as JSON; an earlier file is whole until they are."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(result, indent=1))
    os.replace(partial, path)


def publish(folder: Path, name: str, result: dict[str, Any]) -> str:
    """Keeps the numbers beside the table of the document; says where, or why not."""
    path = folder / f"{name}.json"
    if (size := len(json.dumps(result, indent=1))) > LARGEST:
        path.unlink(missing_ok=True)
        return f"{size:,} bytes are too many for {path}: over {LARGEST:,} are not kept there"
    folder.mkdir(exist_ok=True)
    keep(path, result)
    return f"and in {path}"


def source(root: Path = ROOT) -> dict[str, Any]:
    """`commit` and `changed`, each None where no git tells: in an unpacked archive, say."""
    if not (root / ".git").exists() or shutil.which("git") is None:
        return {"commit": None, "changed": None}
    commit = _git(root, "rev-parse", "HEAD")
    # The documents are left out: `--docs` itself changes them.
    changes = _git(root, "status", "--porcelain", "--", "llama_jax", "bench")
    return {"commit": commit, "changed": None if changes is None else bool(changes)}


def shown(source: dict[str, Any]) -> str:
    """The same in words."""
    if source["commit"] is None:
        return "of an unknown commit"
    return f"at {source['commit'][:12]}{' with changes' if source['changed'] else ''}"


def _git(root: Path, *arguments: str) -> str | None:
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True)
    return None if done.returncode else done.stdout.strip()
