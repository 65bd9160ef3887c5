"""Who imports whom: docs/architecture.md's arrows, read from the source with `ast`."""

import ast
from pathlib import Path

import pytest
from helpers import ROOT

PACKAGE = ROOT / "llama_jax"
ROOMS = {  # lower numbers are further down; a room imports only from below itself
    "tokenizer": 0,
    "distributed": 0,
    "config": 0,
    "settings": 0,
    "compilation": 0,
    "ops": 0,
    "stops": 0,
    "mesh": 1,
    "params": 1,
    "reference": 1,
    "stop_strings": 1,
    "sharding": 2,
    "prompts": 2,
    "kernels": 3,
    "cache": 4,
    "model": 5,
    "sample": 6,
    "checkpoint": 6,
    "decode": 7,
    "batches": 7,
    "spelling": 7,
    "score": 8,
    "rounds": 9,
    "generate": 10,
    "chat": 11,
    "cli": 12,
}
OWNERS = {  # third-party packages that belong to certain rooms alone
    "flax": {"model"},
    "orbax": {"checkpoint"},
    "torch": set(),
    "transformers": set(),
}
FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def imports_of(file: Path) -> set[str]:
    """Every module that a file imports anywhere in it, type checking included."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
            if node.module == "llama_jax":
                found |= {f"llama_jax.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_imports_point_up_the_list_of_rooms(file):
    room = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for module in imports_of(file):
        if (top := module.split(".")[0]) in OWNERS:
            assert room in OWNERS[top], f"{top} may not be imported in {room}"
        if top != "llama_jax" or room in ("__init__", "cli"):
            continue
        other = room_of(module)
        assert other in ROOMS, f"{module} names no room"
        if room == "tokenizer" and other != room:
            pytest.fail(f"the tokenizer imports nothing of ours, and imports {module}")
        if other != room:
            assert ROOMS[other] < ROOMS[room], f"{room} may not import {other}"


def test_every_room_is_drawn():
    rooms = {f.relative_to(PACKAGE).parts[0].removesuffix(".py") for f in FILES}
    assert rooms == {*ROOMS, "__init__"}


def test_docs_draw_every_room():
    drawing = (PACKAGE.parent / "docs" / "architecture.md").read_text()
    for path in PACKAGE.iterdir():
        if path.suffix == ".py" or (path.is_dir() and path.name != "__pycache__"):
            assert path.name in drawing, f"docs/architecture.md does not draw {path.name}"
