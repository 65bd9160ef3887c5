"""What a result was measured from: our commit, and whether the code is still that commit's."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def source(root: Path = ROOT) -> dict[str, Any]:
    """`commit` and `changed`, each None where no git tells: in an unpacked archive, say."""
    if not (root / ".git").exists() or shutil.which("git") is None:
        return {"commit": None, "changed": None}
    commit = _git(root, "rev-parse", "HEAD")
    # The documents are left out: `--docs` itself changes them.
    changes = _git(root, "status", "--porcelain", "--", "llama_jax", "tools")
    return {"commit": commit, "changed": None if changes is None else bool(changes)}


def shown(source: dict[str, Any]) -> str:
    """The same in words."""
    if source["commit"] is None:
        return "of an unknown commit"
    return f"at {source['commit'][:12]}{' with changes' if source['changed'] else ''}"


def _git(root: Path, *arguments: str) -> str | None:
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True)
    return None if done.returncode else done.stdout.strip()
