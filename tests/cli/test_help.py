"""`--help` at 80 columns, `--version`, completion."""

import re
import sys

import pytest
import typer
from helpers import run

import llama_jax
from llama_jax.cli import app, main

COMMANDS = list(typer.main.get_command(app).commands)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_whole_at_80_columns(name, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    shown = run(name, "--help").stdout
    assert max(map(len, shown.splitlines())) <= 80
    command = typer.main.get_command(app).commands[name]
    for param in command.params:
        for option in (*param.opts, *param.secondary_opts):
            if option.startswith("-"):
                assert re.search(rf"(?<![\w-]){option}(?![\w-])", shown), option
        assert getattr(param, "help", None), f"{name} does not say what {param.name} does"
    assert "…" not in shown
    assert "..." not in re.sub(r"\[?\{?(PROMPT|FILE)\}?\]?\.\.\.", "", shown)
    assert (
        re.findall(r"<(?=[a-z])(?!hf\||llama2\||whole\|)[^>]*>", shown) == []
    )  # Python's types: <list[Path]>


def test_options_stand_under_the_heading_of_their_group():
    shown = run("generate", "--help").stdout
    places = [shown.index(f"\n{title}:") for title in ("Prompts", "Sampling", "Output")]
    assert places == sorted(places)
    assert shown.index("--fsdp") > shown.index("\nSeveral devices:")


def test_the_list_of_commands_is_whole_and_says_the_exit_codes(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    shown = run("--help", prog_name="python -m llama_jax").stdout
    assert "..." not in shown.replace("[ARGS]...", "")
    assert "Exit codes: 0 done; 1 a file or the work failed" in shown
    assert "--install-completion" in shown


def test_each_commands_line_fits_beside_its_name_in_a_terminal():
    """The runner's lines have 80 characters, those of a terminal of 80 columns 78."""
    room = 78 - 6 - max(map(len, COMMANDS))
    for name, command in typer.main.get_command(app).commands.items():
        assert not command.get_short_help_str(room).endswith("..."), name


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_is_of_the_command_however_it_was_called(monkeypatch, capsys, shell):
    monkeypatch.setattr(sys, "argv", ["python -m llama_jax", "--show-completion", shell])
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    script = capsys.readouterr().out
    assert "_LLAMA_JAX_COMPLETE=complete_" in script
    assert "python" not in script


def test_the_version_is_printed():
    result = run("--version")
    assert (result.exit_code, result.stdout) == (0, f"llama_jax {llama_jax.__version__}\n")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [((), 2), (("nonsense",), 2), (("generate", "--nonsense"), 2), (("inspect", "nowhere"), 1)],
)
def test_exit_codes_are_those_of_the_help(arguments, code):
    assert run(*arguments).exit_code == code
