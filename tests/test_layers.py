"""Who imports whom: docs/architecture.md's arrows, read from the source with `ast`."""

import ast
import re
from pathlib import Path

import pytest
from house import (
    FILES,
    PACKAGE,
    ROOT,
    arguments_of,
    files_that_name,
    functions_of,
    functions_to_a_product,
    line_count,
    lines_of,
    named,
    platforms_outside_kernels,
)

PAGE = (ROOT / "docs/architecture.md").read_text()
ARROWS = PAGE.split("## Who may import whom")[1].split("```")[1].split("<-")
ROOMS = {room: level for level, rooms in enumerate(ARROWS) for room in re.findall(r"\w+", rooms)}
"""How far up each room lies: a room imports only from below itself."""
ROOMS["__main__"] = len(ARROWS)
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


@pytest.mark.parametrize("file", FILES, ids=named)
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


def test_no_files_import_one_another_in_a_ring():
    """Type checking's imports count: to read one of the files would be to read all."""

    def module_of(file):
        return ".".join(("llama_jax", *Path(named(file)).with_suffix("").parts))

    files = {module_of(file): file for file in FILES if file.name != "__init__.py"}
    left = {name: imports_of(file) & files.keys() for name, file in files.items()}
    while outside := {
        name
        for name, below in left.items()
        if not below & left.keys() or not any(name in others for others in left.values())
    }:
        left = {name: below for name, below in left.items() if name not in outside}
    assert not left, f"these import one another: {sorted(left)}"


def test_a_platform_is_named_by_kernels_and_limits_alone():
    assert platforms_outside_kernels() == {
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
        named(file)
        for file in FILES
        if any(module.split(".")[0] == "flax" for module in imports_of(file))
    }
    assert importing == {"model/module.py"}


@pytest.mark.parametrize("file", FILES, ids=named)
def test_files_and_functions_keep_to_their_sizes(file):
    assert line_count(file) <= 250
    for function in functions_of(file):
        assert lines_of(function) <= 60, f"{function.name} has {lines_of(function)} lines"
        assert arguments_of(function) <= 12, f"{function.name} has {arguments_of(function)}"


def test_the_model_is_read_on_one_page():
    assert line_count(PACKAGE / "model/transformer.py") < 200


def test_ten_functions_lie_between_generate_and_a_product():
    way = functions_to_a_product()
    assert len(way) <= 10, " -> ".join(way)


def test_a_sampling_setting_is_a_field_a_rule_and_a_place_in_the_order():
    """The command's option and the server's field are made of the field."""
    files = {"generation/settings.py", "ops/sampling.py", "generation/sample.py"}
    assert set(files_that_name("min_p")) == files


def numbers_stated(file: Path) -> set[str]:
    """The names of a module to which it gives a number that it writes out."""
    found = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            written = [n for n in ast.walk(node.value) if isinstance(n, ast.Constant)]
            if written and all(type(n.value) in (int, float) for n in written):
                found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


def test_limits_states_every_size_of_generation():
    files = (PACKAGE / "generation").glob("*.py")
    elsewhere = [numbers_stated(file) for file in files if file.name != "limits.py"]
    assert set().union(*elsewhere) == {"NO_TOKEN"}  # an id that no token has


OUTSIDE = [
    file
    for folder in ("tests", "bench", "tools", "scripts", "examples")
    for file in ROOT.glob(f"{folder}/**/*.py")
]
THEIRS = re.compile(  # of other projects: none has a public door
    r"(.*\._fields|.*\._replace|os\._exit|record\._orig_compress_start|.*\._cache_size"
    r"|(.*\.)?llama_cpp\._lib|.*stderr\._(force_terminal|file|environ)"
    r"|transformers\..*\._is_torch_xpu_available)$"
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


@pytest.mark.parametrize("file", FILES, ids=named)
def test_a_file_says_first_what_it_holds(file):
    """docs/architecture.md says which room to enter, and leaves the files to themselves."""
    assert ast.get_docstring(ast.parse(file.read_text()))


def test_every_room_is_drawn():
    rooms = {f.relative_to(PACKAGE).parts[0].removesuffix(".py") for f in FILES}
    assert rooms == {*ROOMS, "__init__"}


def test_docs_draw_every_room():
    for path in PACKAGE.iterdir():
        if path.suffix == ".py" or (path.is_dir() and path.name != "__pycache__"):
            assert path.name in PAGE, f"docs/architecture.md does not draw {path.name}"


def test_files_of_tests_have_names_of_their_own():
    """pytest imports a file by its name alone, and takes one of two for the other."""
    names = [file.name for file in (ROOT / "tests").rglob("*.py") if file.name != "conftest.py"]
    assert sorted(set(names)) == sorted(names)


@pytest.mark.parametrize("file", sorted((ROOT / "tests").rglob("test_*.py")), ids=lambda f: f.name)
def test_what_tests_share_is_no_test_file(file):
    assert not {name for name in imports_of(file) if name.startswith("test_")}
