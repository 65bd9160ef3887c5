"""A training run as a folder: the recipe, the saved states, the metrics and the model.

runs/stories/
├── recipe.json      the recipe, as it runs
├── tokens.json      the sha256 of what it is trained on
├── metrics.jsonl    a line for each step and each evaluation
├── tensorboard/     the same for TensorBoard, where it is installed
├── states/500/      weights, moments and counts at step 500, to go on from
└── model/           the weights and the tokenizer: a checkpoint like any other
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.sharding

from llama_jax.checkpoint.native.manifest import check_spelled
from llama_jax.sharding.arrays import mesh_of
from llama_jax.tokenizer import Tokenizer, load_tokenizer
from llama_jax.train.fits import check_fits, device_here
from llama_jax.train.loop import Data, run_steps
from llama_jax.train.model import given, mesh_for_recipe, model_of
from llama_jax.train.model_folder import ModelFolder
from llama_jax.train.packed_rows import rows_in
from llama_jax.train.peak import peak_for_recipe
from llama_jax.train.phases import phase
from llama_jax.train.plan import plan
from llama_jax.train.recipe import Recipe
from llama_jax.train.report import Report
from llama_jax.train.rows import Batch
from llama_jax.train.same_run import keep_recipe
from llama_jax.train.saves import Saves
from llama_jax.train.state import (
    TrainState,
    new_state,
    result,
    state_shapes,
    with_frozen,
    without_frozen,
)
from llama_jax.train.token_folder import TokenFolder, open_tokens
from llama_jax.train.token_split import TokenSplit
from llama_jax.train.trained import split
from llama_jax.weights.params import Params

METRICS, STATES, MODEL = "metrics.jsonl", "states", "model"
HASHED_BYTES = 4 << 30
"""Folders of tokens up to this size are compared with their sha256 before a run."""


def train(
    recipe: Recipe,
    folder: str | os.PathLike[str],
    *,
    say: Callable[[str], None] = print,
    sample: Callable[[Params, Sequence[str]], Sequence[str]] | None = None,
) -> Path:
    """Trains a model by a recipe in a folder of its own, and returns the model's folder in it.

    Where the folder has saved states, training goes on from the newest that is whole: the same
    call continues a run that was stopped. `say` is given lines for a person, and `sample` draws
    completions of prompts.

    ValueError where the recipe does not fit what it names, or the run that the folder has.
    """
    folder, say = Path(folder), say if jax.process_index() == 0 else _say_nothing
    check_spelled(folder)
    with phase(say, f"comparing the sha256 of {recipe.tokens}"):
        tokens = open_tokens(given(recipe, "tokens"), check_hashes=_is_soon_read(recipe.tokens))
    mesh = mesh_for_recipe(recipe)
    like, begin = model_of(recipe, tokens, mesh)
    data = _data(recipe, open_tokens(tokens.path, vocab_size=like.config.vocab_size))
    if recipe.run.keep_best and data.validation is None:
        raise ValueError(
            f"keep_best=True compares evaluations, and {tokens.path} has no validation"
        )
    device = device_here(recipe.mesh.devices)
    planned = plan(recipe, like.config, platform=device.platform, frozen=split(like)[1])
    check_fits(planned, device)
    keep_recipe(recipe, tokens, folder)
    saves, report = Saves(folder / STATES, keep=recipe.run.keep), None
    try:
        state = _begun(recipe, saves, like, begin, say)
        say(_beginning(recipe, state, data))
        if tokens.tokenizer is None and sample is not None:
            sample = None
            say(f"no samples are drawn: {tokens.path} has no tokenizer's file")
        with phase(say, "measuring this device's peak"):
            report = _report(recipe, state, folder, say, data)

        model = ModelFolder(folder / MODEL, adapters=recipe.lora is not None)

        def on_save(state: TrainState) -> None:
            model.save(_result(state, tokens.tokenizer))

        def on_sample(state: TrainState) -> None:
            if sample is not None:
                for text in sample(_result(state, tokens.tokenizer), recipe.run.prompts):
                    say(f"  > {text}")

        state = run_steps(recipe, state, data, saves, report, on_save=on_save, on_sample=on_sample)
        if int(state.step) < recipe.steps:
            done = f"step {int(state.step):,} of {recipe.steps:,}"
            say(f"stopped after {done}, which is saved: start it again to go on")
    finally:
        saves.close()
        if report:
            report.close()
    return folder / MODEL


def first_batch(recipe: Recipe) -> tuple[Batch, Tokenizer]:
    """The rows of a run's first step, in NumPy arrays, and the tokenizer that reads them."""
    tokens = open_tokens(given(recipe, "tokens"))
    if tokens.tokenizer is None:
        raise ValueError(
            f"{tokens.path} has no tokenizer, so its tokens cannot be shown as text; copy the "
            "tokenizer's file into that folder"
        )
    data = _data(recipe, tokens)
    return data.rows.read(data.order.at(0)), load_tokenizer(tokens.tokenizer)


def _begun(
    recipe: Recipe,
    saves: Saves,
    like: Params,
    begin: Callable[[], Params],
    say: Callable[[str], None],
) -> TrainState:
    """The newest saved state that is whole, or a new one."""
    with phase(say, "looking for saved states"):
        state = saves.newest(without_frozen(state_shapes(recipe, like)), say)
    checkpoint = recipe.model and recipe.model.checkpoint
    with phase(say, f"reading {checkpoint}" if checkpoint else "drawing the first weights"):
        if state is None:
            return new_state(recipe, begin())
        return state if recipe.lora is None else with_frozen(state, split(begin())[1])


def _say_nothing(line: str) -> None:
    """What process 0 says, the others need not."""


def _is_soon_read(tokens: str) -> bool:
    """Whether all tokens are read within seconds, so that their sha256 are compared each time."""
    return sum(file.stat().st_size for file in Path(tokens).rglob("*.bin")) <= HASHED_BYTES


def _beginning(recipe: Recipe, state: TrainState, data: Data) -> str:
    """The run in a line: what is trained on what, or after which step it goes on."""
    if step := int(state.step):
        more = "going on" if step < recipe.steps else "nothing is left"
        return f"{more} after step {step:,}"
    mesh = mesh_of(state.params)
    devices = "one device" if mesh is None else f"{mesh.size} devices"
    return f"{_parameters(state)}, on {devices}; {data.order.rows:,} rows an epoch"


def _parameters(state: TrainState) -> str:
    """How many parameters there are, and how many of them are trained."""
    trained, frozen = split(state.params)
    if frozen is None:
        return f"{state.params.size:,} parameters in {state.params.dtype}"
    count = sum(leaf.size for leaf in jax.tree.leaves(trained))
    return f"{count:,} parameters of adapters, over {frozen.size:,} that stay as they are"


def _data(recipe: Recipe, tokens: TokenFolder) -> Data:
    shape: Any = {"time": recipe.step.context, "documents": recipe.step.documents}
    rows = rows_in(tokens.train, **shape)
    validation = None
    if tokens.validation is not None:
        validation = rows_in(tokens.validation, **shape)
    order = rows.order(recipe.step.batch, seed=recipe.seed)
    per_token = (_bytes_per_token(split) for split in (tokens.train, tokens.validation))
    return Data(rows, order, validation, *per_token)


def _bytes_per_token(split: TokenSplit | None) -> float | None:
    """UTF-8 bytes of a split's text for each token that is predicted: all but the first."""
    if split is None or not split.text_bytes:
        return None
    return split.text_bytes / max(1, len(split) - 1)


def _report(
    recipe: Recipe, state: TrainState, folder: Path, say: Callable[[str], None], data: Data
) -> Report:
    mesh = mesh_of(state.params)
    return Report(
        recipe,
        state.params.config,
        folder / METRICS,
        say,
        first=int(state.step),
        devices=1 if mesh is None else mesh.size,
        peak=peak_for_recipe(recipe),
        bytes_per_token=data.bytes_per_token,
    )


def _result(state: TrainState, tokenizer: Path | None) -> Params:
    return result(state).replace(tokenizer=tokenizer)
