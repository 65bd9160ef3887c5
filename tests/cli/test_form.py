"""`generate --json-schema` and `--regex`."""

import json
import re
import sys

import pytest
from helpers import run

from llama_jax.cli.form import Form

FEW = ("-n", 40, "-t", 1.5, "--seed", 5)


def test_texts_are_of_the_form_that_was_asked_for(writer, tmp_path):
    file = tmp_path / "schema.json"
    file.write_text(json.dumps({"enum": [{"a": 1}, [True]]}))
    done = run("generate", writer, "Q:", "--json", "--json-schema", file, *FEW)
    (row,) = map(json.loads, done.stdout.splitlines())
    if row["finish_reason"] == "stop":
        assert json.loads(row["text"]) in ({"a": 1}, [True])
    else:  # blanks between JSON's tokens are the model's
        assert row["text"][0] in "{["
    text = run("generate", writer, "Q:", "--regex", "(yes|no){2}", "--no-echo", *FEW).stdout
    assert re.fullmatch("(yes|no){2}", text.strip())


@pytest.mark.parametrize(
    ("options", "message", "code"),
    [
        (["--regex", r"(a)\1"], "--regex cannot be followed: backreferences are not supported", 2),
        (["--regex", "a", "--json-schema", "b"], "--json-schema and --regex both say what to", 2),
        (
            ["--json-schema", "wrong.json"],
            "wrong.json: the JSON schema cannot be followed: Invalid",
            1,
        ),
        (["--json-schema", "none.json"], "none.json: No such file or directory", 1),
    ],
)
def test_a_form_that_is_wrong_is_an_error_in_the_options_own_words(
    writer, tmp_path, monkeypatch, options, message, code
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wrong.json").write_text('{"type": "text"}')
    done = run("generate", writer, "Q:", *options)
    assert done.exit_code == code
    assert f"error: {message}" in done.stderr


def test_without_the_library_the_error_says_what_to_install(writer, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    done = run("generate", writer, "Q:", "--regex", "never tried before")
    assert done.exit_code == 1
    assert 'pip install "llama_jax[grammar]"' in done.stderr


def test_a_regex_is_utf_8_whatever_the_locale():
    typed = "[é☃]".encode().decode("ascii", "surrogateescape")
    assert Form(regex=typed).read() == {"regex": "[é☃]"}
