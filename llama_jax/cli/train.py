"""`llama-jax train`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llama_jax.cli.console import UsageError
from llama_jax.cli.processes import Processes, over_devices

if TYPE_CHECKING:
    from llama_jax.train.recipe import Recipe
    from llama_jax.weights.params import Params

SAMPLE_TOKENS = 80
MASK_ROWS = 4
"""Rows that --show-mask prints."""


@over_devices
def train(
    recipe: Annotated[
        Path,
        typer.Argument(metavar="RECIPE", help="A recipe: a TOML file, see docs/guides/train.md"),
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="The run's folder: a new one, or one to go on with"),
    ] = None,
    *,
    set: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="In place of the recipe's value: optimizer.learning_rate=1e-3; may be repeated",
        ),
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Say what memory a device needs, and train nothing")
    ] = False,
    show_mask: Annotated[
        bool,
        typer.Option(
            "--show-mask",
            help="Print the first step's rows as text, trained tokens marked, and train nothing",
        ),
    ] = False,
    device: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="With --plan: h100, h200, a100 or a GPU's memory (24GB), which need not be here",
        ),
    ] = None,
    devices: Processes,
) -> None:
    """Train a model by a recipe, or go on with a run.

    Over several devices as the recipe's [mesh] says, which takes all devices of all processes.
    """
    asked = _read(recipe, set or [])
    if plan:
        _plan(asked, device)
        return
    if show_mask:
        _show_mask(asked)
        return
    if device is not None:
        raise UsageError("--device goes with --plan; training takes the devices that are here")
    if out is None:
        raise UsageError("a run needs a folder: --out runs/first, say")
    _train(asked, out)


def _train(recipe: Recipe, out: Path) -> None:
    from llama_jax.compilation import keep_programs
    from llama_jax.tokenizer import find_tokenizer
    from llama_jax.train.run import train
    from llama_jax.train.saves import hush_log
    from llama_jax.train.token_folder import holds_dialogs

    keep_programs()
    hush_log()
    try:
        model = train(recipe, out, say=_say, sample=_sample)
    except RuntimeError as error:  # the run went wrong, and not what was asked
        raise ValueError(str(error)) from error
    if holds_dialogs(recipe.tokens):
        command = ["chat", str(model)]
    elif find_tokenizer(model):
        command = ["generate", str(model), next(iter(recipe.run.prompts), "")]
    else:
        command = ["generate", str(model), "--ids", "1"]
    _say(f"the model is in {model}: {shlex.join(['llama-jax', *command])}")


def _read(file: Path, changes: Sequence[str]) -> Recipe:
    """The recipe with its changes, which are what is wrong where the file alone is sound."""
    from llama_jax.train.recipe_file import read_recipe

    try:
        return read_recipe(file, changes)
    except ValueError:
        if not changes:
            raise
        read_recipe(file)
    try:
        return read_recipe(file, changes, named="--set")
    except ValueError as error:
        raise UsageError(str(error)) from None


def _plan(recipe: Recipe, name: str | None) -> None:
    """Prints the memory of each device, part by part; ValueError where it is too much."""
    from llama_jax.checkpoint.files.messages import in_units
    from llama_jax.checkpoint.published import parameter_count
    from llama_jax.train.fits import check_fits, device_here, named_device
    from llama_jax.train.model import planned_model
    from llama_jax.train.plan import plan

    (config, frozen), s = planned_model(recipe), recipe.step
    device = named_device(name) if name else device_here(recipe.mesh.devices)
    found = plan(recipe, config, platform=device.platform, frozen=frozen)
    many = f"{found.devices} devices" if found.devices > 1 else "one device"
    print(f"{parameter_count(config):,} parameters, {s.batch} x {s.context:,} tokens, {many}")
    for part, size in found.parts.items():
        print(f"{in_units(size):>12}  {part}")
    print(f"{in_units(found.total):>12}  a device in all, at {found.fullest}")
    check_fits(found, device)
    print(f"{in_units(device.memory):>12}  has {device.name}")


def _show_mask(recipe: Recipe) -> None:
    """Prints the first rows: trained text is green on a terminal, and elsewhere {+like this+}."""
    from rich.console import Console
    from rich.text import Text

    from llama_jax.train.run import first_batch
    from llama_jax.train.shown import pieces_of

    batch, tokenizer = first_batch(recipe)
    console = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)
    coloured = console.is_terminal and not console.no_color
    for row in range(min(MASK_ROWS, len(batch.tokens))):
        trained = int((batch.weights[row] != 0).sum())
        console.print(f"row {row + 1}: {trained:,} of {len(batch.weights[row]):,} tokens trained")
        shown = Text()
        for text, is_trained in pieces_of(batch, row, tokenizer):
            marked = text if coloured or not is_trained else "{+" + text + "+}"
            shown.append(marked, "green" if is_trained else "dim")
        console.print(shown)


def _say(line: str) -> None:
    print(line, flush=True)


def _sample(params: Params, prompts: Sequence[str]) -> list[str]:
    """A completion of each prompt, on one line."""
    from llama_jax import generate

    found = generate(params, list(prompts), max_new_tokens=SAMPLE_TOKENS)
    return [repr(f"{prompt}{one.text}") for prompt, one in zip(prompts, found, strict=True)]
