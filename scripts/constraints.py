"""`python scripts/constraints.py > constraints.txt`: the versions that are installed here.

Of every package that pyproject.toml names, without its extras for other machines, and of theirs.
"""

from __future__ import annotations

import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

EXTRAS = ("serve", "grammar", "test", "docs", "dev")
HEAD = """# Versions with which the tests pass, on Python 3.11: pip install -e . -c constraints.txt
# Written by scripts/constraints.py."""


def named() -> list[Requirement]:
    """What pyproject.toml asks for, with the extras that a clone needs."""
    file = Path(__file__).parents[1] / "pyproject.toml"
    project = tomllib.loads(file.read_text())["project"]
    wanted = [*project["dependencies"]]
    for extra in EXTRAS:
        wanted += project["optional-dependencies"][extra]
    asked = map(Requirement, wanted)
    return [one for one in asked if canonical(one.name) != "llama-jax"]


def canonical(name: str) -> str:
    """A package's name as registries compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def installed(wanted: list[Requirement]) -> dict[str, str]:
    """The versions of these packages, and of all that they need here."""
    found: dict[str, str] = {}
    done: set[str] = set()
    while wanted:
        one = wanted.pop()
        if str(one) in done:
            continue
        done.add(str(one))
        distribution = metadata.distribution(one.name)
        found[canonical(one.name)] = distribution.version
        for text in distribution.requires or []:
            inner = Requirement(text)
            extras = one.extras or {""}
            if inner.marker is None or any(inner.marker.evaluate({"extra": e}) for e in extras):
                wanted.append(inner)
    return found


if __name__ == "__main__":
    lines = [f"{name}=={version}" for name, version in sorted(installed(named()).items())]
    sys.stdout.write("\n".join([HEAD, *lines]) + "\n")
