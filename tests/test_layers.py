"""Who imports whom: docs/architecture.md's arrows, read from the source with `ast`."""

import ast
import re
from pathlib import Path

import pytest
from helpers import ROOT

PACKAGE = ROOT / "llama_jax"
ROOMS = {  # lower numbers are further down; a room imports only from below itself
    "tokenizer": 0,
    "distributed": 0,
    "validation": 0,
    "free_memory": 0,
    "field_docs": 0,
    "pytrees": 0,
    "rope_scaling": 1,
    "config": 2,
    "kept_programs": 0,
    "jax_settings": 0,
    "ops": 0,
    "weights": 3,
    "sharding": 4,
    "kernels": 5,
    "compilation": 6,
    "checkpoint": 7,
    "model": 8,
    "generation": 9,
    "verify": 9,
    "train": 9,
    "serve": 10,
    "cli": 11,
    "__main__": 12,
}
OWNERS = {  # third-party packages that belong to certain rooms alone
    "flax": {"model"},
    "optax": {"train"},
    "orbax": {"checkpoint", "train"},
    "starlette": {"serve"},
    "uvicorn": {"serve"},
    "h11": {"serve"},
    "msgspec": {"serve"},
    "llguidance": {"generation"},
    "torch": set(),
    "transformers": set(),
}
PLATFORMS = {"cpu", "gpu", "cuda", "rocm", "tpu"}
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


def platform_words(file: Path) -> set[str]:
    """The platforms that a file names in its code: as a string, a name or a keyword."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value.lower())
        elif isinstance(node, ast.keyword | ast.arg):
            found.add(node.arg or "")
        elif isinstance(node, ast.Name):
            found.add(node.id.lower())
        elif isinstance(node, ast.Attribute):
            found.add(node.attr.lower())
    return found & PLATFORMS


def test_a_platform_is_named_by_kernels_and_limits_alone():
    words = {
        str(file.relative_to(PACKAGE)): found
        for file in FILES
        if (found := platform_words(file)) and file.relative_to(PACKAGE).parts[0] != "kernels"
    }
    assert words == {
        "generation/limits.py": {"cpu"},
        # No platform of JAX's: a word of torch's file format, which every file has.
        "checkpoint/files/torch_writer.py": {"cpu"},
    }


def test_dataclasses_are_registered_in_our_way():
    """JAX's own way makes the structures of two classes equal (docs/notes/jax.md)."""
    theirs = [file for file in FILES if "tree_util.register_dataclass" in file.read_text()]
    assert not theirs


def test_only_the_flax_module_imports_flax():
    importing = {
        str(file.relative_to(PACKAGE))
        for file in FILES
        if any(module.split(".")[0] == "flax" for module in imports_of(file))
    }
    assert importing == {"model/module.py"}


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_files_and_functions_keep_to_their_sizes(file):
    text = file.read_text()
    assert len(text.splitlines()) <= 250
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            lines = node.end_lineno - node.lineno + 1
            first = node.body[0]
            told = first.end_lineno - first.lineno if ast.get_docstring(node) else 0
            assert lines - told <= 60, f"{node.name} has {lines} lines"


OUTSIDE = [
    f for folder in ("tests", "bench", "tools", "examples") for f in ROOT.glob(f"{folder}/**/*.py")
]
THEIRS = re.compile(  # of Python's, of JAX's, of llama_cpp's and of rich's: none has a public door
    r"(.*\._fields|.*\._replace|os\._exit|record\._orig_compress_start|.*\._cache_size"
    r"|(.*\.)?llama_cpp\._lib|.*stderr\._(force_terminal|file|environ))$"
)


def private_names(file: Path) -> set[str]:
    """The private names of something else that a file reads, imports or replaces."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) not in ("self", "cls"):
            found.add(ast.unparse(node))
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("setattr", "replace")):
            words = [x.value if isinstance(x, ast.Constant) else ast.unparse(x) for x in node.args]
            found |= {str(words[0]), ".".join(map(str, words[:2]))} if words else set()
    private = re.compile(r"[\w.()]+\._[a-zA-Z]\w*")
    return {name for name in found if private.fullmatch(name) and not THEIRS.match(name)}


@pytest.mark.parametrize("file", OUTSIDE, ids=lambda f: str(f.relative_to(ROOT)))
def test_nothing_outside_reaches_for_a_private_name(file):
    assert private_names(file) == set()


def test_every_room_is_drawn():
    rooms = {f.relative_to(PACKAGE).parts[0].removesuffix(".py") for f in FILES}
    assert rooms == {*ROOMS, "__init__"}


def test_docs_draw_every_room():
    drawing = (PACKAGE.parent / "docs" / "architecture.md").read_text()
    for path in PACKAGE.iterdir():
        if path.suffix == ".py" or (path.is_dir() and path.name != "__pycache__"):
            assert path.name in drawing, f"docs/architecture.md does not draw {path.name}"


def test_files_of_tests_have_names_of_their_own():
    """pytest imports a file by its name alone, and takes one of two for the other."""
    names = [file.name for file in (ROOT / "tests").rglob("*.py") if file.name != "conftest.py"]
    assert sorted(set(names)) == sorted(names)


@pytest.mark.parametrize("file", sorted((ROOT / "tests").rglob("test_*.py")), ids=lambda f: f.name)
def test_what_tests_share_is_no_test_file(file):
    assert not {name for name in imports_of(file) if name.startswith("test_")}
