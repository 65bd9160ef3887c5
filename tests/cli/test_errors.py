"""Errors speak of the command's options."""

import pytest
from helpers import run

from llama_jax.cli.console import said
from llama_jax.cli.errors import in_options, names_typed, option_names
from llama_jax.cli.generate import generate

NAMES = {
    "truncate": "--truncate",
    "top_p": "--top-p",
    "tensor": "--tensor",
    "dtype": "--dtype",
    "max_seq_len": "--max-seq-len",
}


@pytest.mark.parametrize(
    ("message", "given", "reworded"),
    [
        ("top_p=2.0 must be", {"top_p": 2.0}, "--top-p 2.0 must be"),
        (
            "tensor=3 does not divide n_heads=8",
            {"tensor": 3},
            "--tensor 3 does not divide n_heads=8",
        ),
        ("pass truncate=True", {"truncate": False}, "pass --truncate"),
        ("dtype='int7' is not", {"dtype": "int7"}, "--dtype 'int7' is not"),
        # A field of a file, which has another value than the option was given.
        ("max_seq_len=8192 is", {"max_seq_len": None}, "max_seq_len=8192 is"),
        ("unknown=3 stays", {"unknown": 3}, "unknown=3 stays"),
        ("pass truncate=, or tools=", {"truncate": None}, "pass --truncate, or tools="),
        ('load it with dtype="float32"', {"dtype": None}, "load it with --dtype float32"),
        ("dtype='b' is not", {"dtype": ["a", "b"]}, "--dtype 'b' is not"),
        ("dtype='c' is not", {"dtype": ["a", "b"]}, "dtype='c' is not"),
    ],
)
def test_an_argument_becomes_the_option_that_gave_it(message, given, reworded):
    assert in_options(message, NAMES, given) == reworded


def test_a_command_knows_its_options_in_groups_too():
    names = option_names(generate)
    assert names["file"] == "--file"
    assert names["max_new_tokens"] == "--max-new-tokens"
    assert names["echo"] == "--echo"
    assert names["fsdp"] == "--fsdp"
    assert "checkpoint" not in names


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (FileNotFoundError(2, "No such file", "a b"), "a b: No such file"),
        (OSError(28, "No space left", b"\xc3\xa9"), "é: No space left"),
        (OSError(28, "No space left"), "what is written has no room: No space left"),  # a stream
        (OSError(104, "Reset by peer"), "Reset by peer"),
        (OSError("of our own"), "of our own"),
        (ValueError("x"), "x"),
    ],
)
def test_what_the_system_refuses_is_said_without_its_number(error, told):
    assert said(error) == told


@pytest.mark.parametrize(
    ("message", "chosen", "typed"),
    [
        ("top_p=2.0 must be", {"top_p": 2.0}, True),
        ("tensor=3 does not divide n_heads=8", {"tensor": 3}, True),
        ("dtype='b' is not", {"dtype": ["a", "b"]}, True),
        ("max_seq_len=8192 is", {"max_seq_len": 4096}, False),
        ("max_seq_len=8192 is", {}, False),  # the default is not chosen
        ("pass truncate=True", {}, False),
        ("is there already; pass truncate=", {"truncate": True}, False),
    ],
)
def test_an_error_is_about_what_was_typed_where_it_names_the_value(message, chosen, typed):
    assert names_typed(message, NAMES, chosen) == typed


@pytest.mark.parametrize("name", ["a\x1b[31m\nerror: b", "a\r\x9b2K\u202eb", "caf\u00e9 \u732b"])
def test_a_name_says_nothing_to_a_terminal(name):
    result = run("inspect", name)
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.isprintable()
    assert line.startswith("error: " + name.encode("unicode_escape").decode()[:1])
    assert ("\u732b" in line) is ("\u732b" in name)


@pytest.mark.parametrize(
    "typed",
    [["inspect", "x" * 3000], ["inspect", "stories", "--quantize", "y" * 900], ["z" * 3000]],
)
def test_an_error_is_a_short_line_whatever_was_typed(typed):
    result = run(*typed)
    assert result.exit_code in (1, 2)
    line = result.stderr.splitlines()[-1]
    assert len(line) <= 500
    assert line.lower().startswith("error: ")
