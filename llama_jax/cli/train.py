"""`llama-jax train`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from llama_jax.weights.params import Params

SAMPLE_TOKENS = 80


def train(
    recipe: Annotated[
        Path,
        typer.Argument(metavar="RECIPE", help="A recipe: a TOML file, see docs/guides/train.md"),
    ],
    out: Annotated[
        Path,
        typer.Option(metavar="FOLDER", help="The run's folder: a new one, or one to go on with"),
    ],
    *,
    set: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="In place of the recipe's value: optimizer.learning_rate=1e-3; may be repeated",
        ),
    ] = None,
) -> None:
    """Train a model by a recipe, or go on with a run."""
    from llama_jax.compilation import keep_programs
    from llama_jax.train.recipe_file import read_recipe
    from llama_jax.train.run import train

    keep_programs()
    try:
        model = train(read_recipe(recipe, set or []), out, say=_say, sample=_sample)
    except RuntimeError as error:  # the run went wrong, and not what was asked
        raise ValueError(str(error)) from error
    _say(f"the model is in {model}: llama-jax generate {model}")


def _say(line: str) -> None:
    print(line, flush=True)


def _sample(params: Params, prompts: Sequence[str]) -> list[str]:
    """A completion of each prompt, on one line."""
    from llama_jax import generate

    found = generate(params, list(prompts), max_new_tokens=SAMPLE_TOKENS)
    return [repr(f"{prompt}{one.text}") for prompt, one in zip(prompts, found, strict=True)]
