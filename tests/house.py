"""The package's sizes, read from its source. `python tests/house.py` prints them as a table."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "llama_jax"
FILES = sorted(PACKAGE.rglob("*.py"))
PLATFORMS = {"cpu", "gpu", "cuda", "rocm", "tpu"}
Function = ast.FunctionDef | ast.AsyncFunctionDef


def named(file: Path) -> str:
    """A file as its path in the package."""
    return str(file.relative_to(PACKAGE))


def line_count(file: Path) -> int:
    return len(file.read_text().splitlines())


def functions_of(file: Path) -> Iterator[Function]:
    """Every function of a file, methods and inner ones too."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, Function):
            yield node


def lines_of(function: Function) -> int:
    """A function's lines, all but those of its docstring after the first."""
    first = function.body[0]
    told = first.end_lineno - first.lineno if ast.get_docstring(function) else 0
    return function.end_lineno - function.lineno + 1 - told


def arguments_of(function: Function) -> int:
    """How many arguments a caller may name, `self` and `cls` not counted."""
    a = function.args
    names = [argument.arg for argument in (*a.posonlyargs, *a.args, *a.kwonlyargs)]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def platform_words(file: Path) -> set[str]:
    """The platforms that a file names in its code: as a string, a name or an argument."""
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


def platforms_outside_kernels() -> dict[str, set[str]]:
    """The words of every file that has any, but for those of kernels/."""
    words = {named(file): platform_words(file) for file in FILES}
    return {name: found for name, found in words.items() if found and name[:8] != "kernels/"}


def files_that_name(setting: str) -> list[str]:
    """The files that a sampling setting touches."""
    word = {"Constant": "value", "Name": "id", "keyword": "arg", "Attribute": "attr", "arg": "arg"}

    def names(file: Path) -> bool:
        tree = ast.walk(ast.parse(file.read_text()))
        found = (str(getattr(n, word.get(type(n).__name__, ""), "")) for n in tree)
        return any(name in (setting, f"{setting}_keeps") for name in found)

    return [named(file) for file in FILES if names(file)]


def functions_to_a_product() -> list[str]:
    """The functions of ours between `generate` and `kernels.linear`, on the longest way."""
    import jax

    import llama_jax
    from llama_jax.model import transformer

    ways, linear = [], transformer.linear

    def watched(*operands):
        frame, way = inspect.currentframe().f_back, []
        while frame and frame.f_code.co_name != "generate":
            if frame.f_code.co_filename.startswith(str(PACKAGE)):
                way.append(f"{Path(frame.f_code.co_filename).stem}.{frame.f_code.co_name}")
            frame = frame.f_back
        ways.append(way[::-1])
        return linear(*operands)

    transformer.linear = watched
    try:
        # A shape of its own, so that nothing that was traced before serves.
        config = llama_jax.Config.named("tiny").replace(hidden_dim=24)
        params = llama_jax.init_params(jax.random.key(0), config)
        llama_jax.generate(params, [[1, 2, 3]], max_new_tokens=4)
    finally:
        transformer.linear = linear
    return max(ways, key=len)


def table() -> Iterator[tuple[str, str]]:
    """The sizes, by what is counted."""
    functions = [(named(file), function) for file in FILES for function in functions_of(file)]
    longest = max(functions, key=lambda one: lines_of(one[1]))
    widest = max(functions, key=lambda one: arguments_of(one[1]))
    way = functions_to_a_product()
    elsewhere = platforms_outside_kernels()
    yield "files over 250 lines", str([named(f) for f in FILES if line_count(f) > 250] or "none")
    yield "longest function", f"{lines_of(longest[1])} lines: {longest[0]} {longest[1].name}"
    yield "most arguments", f"{arguments_of(widest[1])}: {widest[0]} {widest[1].name}"
    model = sorted((PACKAGE / "model").glob("*.py"))
    each = ", ".join(f"{file.stem} {line_count(file)}" for file in model)
    yield "lines of model/", f"{sum(map(line_count, model)):,}: {each}"
    yield "functions between generate() and a product", f"{len(way)}: {' '.join(way)}"
    yield "files that a sampling setting touches", " ".join(files_that_name("min_p"))
    yield "platform words outside kernels/", str(elsewhere)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    for name, value in table():
        print(f"| {name} | {value} |")
