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
    assert "jax" in found
    assert not found & {
        "flax", "orbax", "orbax.checkpoint", "optax", "tiktoken", "tokenizers", "sentencepiece",
        "jinja2", "safetensors", "torch", "transformers", "typer",
    }  # fmt: skip


def test_help_and_a_missing_prompt_are_answered_without_jax():
    code = "from llama_jax.cli import main\ntry: main(sys.argv[1:])\nexcept SystemExit: pass"
    for arguments in (["--help"], ["generate", "--help"], ["generate", "folder"]):
        assert "jax" not in modules_after(code, *arguments), arguments


def test_the_public_names_are_listed_once_and_each_is_there():
    assert llama_jax.__all__ == sorted(set(llama_jax.__all__))
    tree = ast.parse(inspect.getsource(llama_jax))
    imported = {
        (alias.name, alias.asname)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module.startswith("llama_jax")
        for alias in node.names
    }
    # `x as x` is how a type checker is told that a name is public.
    assert imported == {(name, name) for name in llama_jax.__all__}
    for name in llama_jax.__all__:
        assert getattr(llama_jax, name) is not None
    assert set(llama_jax.__all__) <= set(dir(llama_jax))
    assert not hasattr(llama_jax, "nothing")


def test_a_star_import_brings_the_public_names_and_no_module_hides_one():
    code = (
        "import llama_jax.generation.generate, llama_jax.generation.chat, llama_jax\n"
        "from llama_jax import *\n"
        "assert all(map(callable, (generate, chat, score, load, forward)))"
    )
    assert "llama_jax.generation.chat" in modules_after(code)
