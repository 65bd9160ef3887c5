"""A command that does not exist is answered with the way to do what it says."""

import pytest
import typer
from helpers import run

from llama_jax.cli import app
from llama_jax.cli.unknown import MEANT

COMMANDS = typer.main.get_command(app).commands


@pytest.mark.parametrize(
    ("typed", "way_out"),
    [
        ("quantize", "that is `llama-jax convert --quantize`, also of generate, chat"),
        ("dialogs", "that is `llama-jax tokenize --dialogs`"),
        ("finetune", "that is `llama-jax train`"),
        ("fine_tune", "that is `llama-jax train`"),
        ("Generate", "that is `llama-jax generate`"),
        ("ask", "that is `llama-jax generate --chat`"),
        ("version", "that is `llama-jax --version`"),
        ("genrate", "did you mean `llama-jax generate`?"),
        ("quantise", "did you mean `llama-jax convert --quantize`, also of"),
        ("Once upon a time", "prompts and checkpoints come after one, such as"),
        ("smollm2", "prompts and checkpoints come after one, such as"),
        ("hf:org/name", "prompts and checkpoints come after one, such as"),
        (".", "prompts and checkpoints come after one, such as"),
        ("xyzzy", "`llama-jax --help` lists them"),
        ("x" * 256, "`llama-jax --help` lists them"),  # of a file, the system takes no such name
        ("x/" * 2500, "`llama-jax --help` lists them"),
    ],
)
def test_what_was_typed_in_a_commands_place_names_the_way(typed, way_out):
    result = run(typed)
    assert result.exit_code == 2
    assert f"Error: {typed[:200]!r} is no command; {way_out}" in result.stderr


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("--chat", "--chat comes after a command: `llama-jax generate --chat`"),
        ("--tensor=2", "--tensor comes after a command: `llama-jax inspect --tensor`, also of"),
        ("--xyzzy", "No such option: --xyzzy"),
    ],
)
def test_an_option_without_its_command_names_the_commands_that_have_it(typed, said):
    result = run(typed, "Hi")
    assert result.exit_code == 2
    assert said in result.stderr


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (("generate", "--temp"), "--temperature"),
        (("generate", "--max_new"), "--max-new-tokens"),
        (("chat", "--rep"), "--repetition-penalty"),
        (("serve", "--no"), "--no-cache, --no-prefix-cache"),
        (("inspect", "--contexts"), "--context"),  # nothing begins so: what is near
    ],
)
def test_an_option_that_is_cut_short_names_those_that_begin_so(typed, meant):
    result = run(*typed, "1")
    assert result.exit_code == 2
    assert f"No such option: {typed[1]} (Possible options: {meant})" in result.stderr


def test_no_word_means_two_things_and_all_lead_to_a_command():
    words = [word for line in MEANT.values() for word in line.split()]
    assert len(words) == len(set(words))
    assert not set(words) & set(COMMANDS)
    for meant in MEANT:
        command, *options = meant.split()
        if command in COMMANDS:
            known = [option for param in COMMANDS[command].params for option in param.opts]
            assert all(option in known for option in options if option.startswith("--"))
        else:
            assert run(command).exit_code == 0
