"""What is not used is not imported; and every public name is there all the same."""

import ast
import inspect
import subprocess
import sys

from helpers import ROOT

import llama_jax


def modules_after(code, *arguments):
    """The top-level packages and our own modules that a process of its own has imported."""
    code = f"import sys\n{code}\nprint('|'.join(sys.modules))"
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split("|"))


def test_the_package_alone_imports_nothing_heavy():
    found = modules_after("import llama_jax")
    assert not found & {"jax", "numpy", "flax", "orbax", "tensorstore", "typer", "rich"}
    assert {name for name in found if name.startswith("llama_jax")} == {"llama_jax"}


def test_generating_imports_what_it_needs_and_no_more():
    found = modules_after("from llama_jax import generate, load, Config")
    assert {"jax", "flax"} <= found
    assert not found & {
        "orbax", "orbax.checkpoint", "optax", "tiktoken", "tokenizers", "sentencepiece", "jinja2",
        "safetensors", "torch", "transformers", "typer",
    }  # fmt: skip


def test_help_and_a_missing_prompt_are_answered_without_jax():
    code = "from llama_jax.cli import main\ntry: main(sys.argv[1:])\nexcept SystemExit: pass"
    for arguments in (["--help"], ["generate", "--help"], ["generate", "folder"]):
        assert "jax" not in modules_after(code, *arguments), arguments


def test_a_function_is_not_hidden_by_the_file_of_its_name():
    code = (
        "import llama_jax.generate, llama_jax.chat, llama_jax.score, llama_jax\n"
        "from llama_jax.generate import Delta\n"
        "assert all(map(callable, (llama_jax.generate, llama_jax.chat, llama_jax.score)))"
    )
    assert "llama_jax.generation.chat" in modules_after(code)


def test_type_checkers_and_python_see_the_same_names():
    tree = ast.parse(inspect.getsource(llama_jax))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    declared = {
        (node.module, alias.name)
        for node in block.body
        if isinstance(node, ast.ImportFrom) and node.module != "llama_jax"
        for alias in node.names
    }
    assert declared == {(f"llama_jax.{home}", name) for name, home in llama_jax._HOME.items()}
    assert (
        sorted(llama_jax.__all__) == llama_jax.__all__ == sorted([*llama_jax._HOME, "distributed"])
    )
    for name in llama_jax._HOME:
        assert callable(getattr(llama_jax, name)), name
    assert set(llama_jax.__all__) <= set(dir(llama_jax))
    assert not hasattr(llama_jax, "nothing")
