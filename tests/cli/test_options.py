"""Options in groups: a dataclass is an option a field."""

from typing import get_type_hints

import typer
from typer.testing import CliRunner

from llama_jax.cli.groups import grouped
from llama_jax.cli.sampling import Sampling, TextSampling
from llama_jax.generation.settings import NUMBERS, SamplingSettings

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
    assert options.keys() >= NUMBERS.keys(), "every number can be asked for"
    found = {name: options[name].__metadata__[0] for name in NUMBERS}
    assert {name: (option.min, option.max) for name, option in found.items()} == {
        "max_new_tokens": (0, None),
        "temperature": (0, None),
        "top_p": (0, 1),
        "top_k": (0, None),
        "min_p": (0, 1),
        "seed": (0, 2**32 - 1),
        "repetition_penalty": (None, None),  # above 0, which no option can say
        "presence_penalty": (None, None),
        "frequency_penalty": (None, None),
        "min_new_tokens": (0, None),
        "logprobs": (0, 20),
        "prompt_logprobs": (0, 20),
    }


def test_what_help_says_of_a_number_is_what_its_field_says():
    (option,) = get_type_hints(Sampling, include_extras=True)["min_p"].__metadata__
    assert option.help == (
        "Keeps tokens at least this fraction as likely as the likeliest; 0 keeps all"
    )
    penalty = get_type_hints(Sampling, include_extras=True)["repetition_penalty"]
    assert penalty.__metadata__[0].help.endswith("1 is none. X is above 0")
