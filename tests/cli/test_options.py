"""Options in groups: a dataclass is an option a field."""

import dataclasses
import math
from typing import get_type_hints

import typer
from typer.testing import CliRunner

from llama_jax.cli.groups import grouped
from llama_jax.cli.sampling import Sampling, TextSampling
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


def test_an_options_range_is_its_settings():
    options = get_type_hints(TextSampling, include_extras=True)
    ranges = {
        field.name: (field.metadata["low"], field.metadata["high"])
        for field in dataclasses.fields(SamplingSettings)
        if field.metadata
    }
    assert options.keys() >= ranges.keys(), "every number can be asked for"
    for name, (low, high) in ranges.items():
        (option,) = options[name].__metadata__
        said = -math.inf if option.min is None else option.min, option.max or math.inf
        if name == "repetition_penalty":  # above 0, which no option can say
            assert said == (-math.inf, math.inf)
        else:
            assert said == (low, high), name


def test_what_help_says_of_a_number_is_what_its_field_says():
    (option,) = get_type_hints(Sampling, include_extras=True)["min_p"].__metadata__
    assert option.help == (
        "Keeps tokens at least this many times as likely as the likeliest; 0 keeps all"
    )
    penalty = get_type_hints(Sampling, include_extras=True)["repetition_penalty"]
    assert penalty.__metadata__[0].help.endswith("1 is none. X is above 0")
