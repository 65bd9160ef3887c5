"""Errors speak of the command's options."""

import os

import pytest
from helpers import GOLDEN_META, run

from llama_jax.cli.errors import in_options, option_names
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


MODEL = GOLDEN_META / "llama3"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("generate", MODEL, "--ids", "1", "--logprobs", 30, "--json"), "--logprobs 30 must be"),
        (("generate", MODEL, "--ids", "1", "--logit-bias", "x=1"), "--logit-bias 'x=1' must be"),
        (("inspect", MODEL, "--dtype", "int7"), "--dtype 'int7' is not"),
        (("generate", MODEL, "--ids", "1", "--stop", "end"), "--stop 'end' needs a tokenizer"),
        (("generate", MODEL, "--ids", "1", "--distributed"), "pass --coordinator, its host:port, "),
        (("inspect", MODEL, "--tensor", 3), "--tensor 3 does not divide n_heads"),
        (("convert", MODEL, "{tmp}/out", "--dtype", "int7"), "--dtype 'int7' is not"),
        (("perplexity", "{tmp}/none", "{tmp}/none.txt"), "none.txt: No such file"),
        (("generate", MODEL, "--ids", "-f", "{tmp}"), "{tmp}: Is a directory"),
        (
            ("export", MODEL, "{tmp}/out", "--format", "hf", "--layout", "llama2"),
            "--layout 'llama2'",
        ),
    ],
)
def test_a_command_says_what_was_typed(tmp_path, monkeypatch, arguments, message):
    for name in list(os.environ):  # what would say which process this is
        if name.startswith(("SLURM_", "OMPI_", "KUBERNETES_", "JAX_COORD")):
            monkeypatch.delenv(name)
    result = run(*(str(each).format(tmp=tmp_path) for each in arguments))
    assert result.exit_code == 1, result.output
    assert message.format(tmp=tmp_path) in result.stderr
    assert result.stderr.count("error:") == 1
