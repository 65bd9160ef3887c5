"""What is not used is not imported; and every public name is there all the same."""

import ast
import dataclasses
import inspect
import pydoc
import re
import subprocess
import sys
import typing

import pytest
from helpers import ROOT

import llama_jax
from llama_jax.field_docs import with_field_docs


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
    tree = ast.parse((ROOT / "llama_jax/__init__.pyi").read_text())
    imported = {
        (alias.name, alias.asname)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
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
        "import llama_jax.completions, llama_jax.generation.chat, llama_jax\n"
        "from llama_jax import *\n"
        "assert all(map(callable, (generate, chat, score, load, forward)))"
    )
    assert "llama_jax.generation.chat" in modules_after(code)


def named_types(value):
    """The types of ours that an annotation names, itself or inside another."""
    if isinstance(value, type) and value.__module__.startswith("llama_jax."):
        return {value}
    inner = [*typing.get_args(value), *getattr(value, "__constraints__", ())]
    return set().union(*map(named_types, inner)) if inner else set()


def public_signatures():
    """Every public function, and every public method and field of a public class."""
    for name in llama_jax.__all__:
        value = getattr(llama_jax, name)
        if inspect.isfunction(value):
            yield name, value
        elif inspect.isclass(value):
            yield name, value
            for method, function in inspect.getmembers(value, inspect.isroutine):
                ours = getattr(function, "__module__", None) == value.__module__
                if ours and not method.startswith("_"):
                    yield f"{name}.{method}", function


def test_every_type_that_a_public_signature_names_is_public():
    public = {getattr(llama_jax, name) for name in llama_jax.__all__ if name[0].isupper()}
    found = {}
    for where, function in public_signatures():
        for hint in typing.get_type_hints(function).values():
            found |= dict.fromkeys(named_types(hint) - public, where)
    assert found == {}
    assert {"Cache", "Delta", "Message", "Score", "Tokenizer"} <= set(llama_jax.__all__)


WORD = re.compile(r"(?<![\w.\"])[A-Z]\w*")
"""A name in an annotation's source, such as Tools; what jaxtyping quotes are axes."""


def aliases():
    """Each name in the package that stands for a type: `Tokens = Int[Array, "batch time"]`."""
    for file in (ROOT / "llama_jax").rglob("*.py"):
        for one in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(one, ast.Assign) and isinstance(one.targets[0], ast.Name):
                yield one.targets[0].id


def test_every_alias_that_a_public_signature_names_is_public():
    ours, hidden = set(aliases()), {}
    for where, function in public_signatures():
        for source in function.__annotations__.values():
            words = WORD.findall(source if isinstance(source, str) else "")
            hidden |= {word: where for word in words if word in ours - set(llama_jax.__all__)}
    assert hidden == {}
    asked = {"Answers", "JSONSchema", "Logits", "Positions", "Queries", "Rule", "Tokens", "Tools"}
    assert asked <= set(llama_jax.__all__)


def test_dir_lists_the_public_names_and_pythons_own():
    assert {name for name in dir(llama_jax) if not name.startswith("__")} == set(llama_jax.__all__)


@pytest.mark.parametrize(
    ("cls", "said"),
    [
        (llama_jax.Config, "hidden_dim: Width of the feed-forward layer."),
        (
            llama_jax.SamplingSettings,
            "top_k: Keeps this many of the likeliest tokens; 0 keeps all.",
        ),
        (llama_jax.Params, "tokenizer: The tokenizer's file"),
        (llama_jax.Completion, "tokens: The new tokens, without the prompt's"),
    ],
)
def test_help_shows_what_is_written_under_the_fields(cls, said):
    text = pydoc.render_doc(cls, renderer=pydoc.plaintext)
    assert said in text
    assert text.index("Fields:") < text.index("Methods defined here")


@pytest.mark.parametrize("name", ["Config", "SamplingSettings", "Params", "Completion", "Delta"])
def test_every_field_is_documented(name):
    cls = getattr(llama_jax, name)
    for field in dataclasses.fields(cls):
        assert f"\n  {field.name}: " in cls.__doc__, field.name


def test_a_class_whose_source_nobody_has_keeps_its_docstring():
    made = {}
    exec("class Made:\n    'One.'\n    x: int\n    'The x.'", made)
    assert with_field_docs(made["Made"]).__doc__ == "One."
