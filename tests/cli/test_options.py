"""Options in groups: a dataclass is an option a field."""

import typer
from typer.testing import CliRunner

from llama_jax.cli.groups import grouped
from llama_jax.cli.options import Sampling
from llama_jax.generation.settings import SamplingSettings

USUAL = Sampling(top_k=3, temperature=0.5)


def called_with(*arguments):
    """What a command with a group gets, called so from a shell."""
    got = []

    @grouped
    def command(name: str, *, sampling: Sampling = USUAL, loud: bool = False):
        got.append((name, sampling, loud))

    app = typer.Typer()
    app.command()(command)
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return got[0]


def test_a_group_has_the_defaults_of_its_command():
    assert called_with("x") == ("x", USUAL, False)


def test_what_is_said_goes_into_the_group_it_is_of():
    name, sampling, loud = called_with("x", "--loud", "-t", "0.25", "--min-p", "0.5")
    assert (name, loud) == ("x", True)
    assert sampling == Sampling(top_k=3, temperature=0.25, min_p=0.5)


def test_what_is_not_asked_for_is_what_the_library_does():
    assert Sampling().settings() == SamplingSettings()
    assert Sampling(top_k=3).settings() == SamplingSettings(top_k=3)
