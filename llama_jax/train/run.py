"""A training run as a folder: the recipe, the saved states, the metrics and the model.

runs/stories/
├── recipe.json      the recipe, as it runs
├── metrics.jsonl    a line for each step and each evaluation
├── states/500/      weights, moments and counts at step 500, to go on from
└── model/           the weights and the tokenizer: a checkpoint like any other
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jax.sharding

from llama_jax.checkpoint import load, save, shapes
from llama_jax.checkpoint.files.json_file import replace_text
from llama_jax.config import Config
from llama_jax.model.transformer import init_params
from llama_jax.sharding.arrays import mesh_of, weight_shardings
from llama_jax.sharding.mesh import make_mesh
from llama_jax.tokenizer import load_tokenizer
from llama_jax.train.loop import Data, run_steps
from llama_jax.train.packed_rows import rows_of
from llama_jax.train.peak import measured_peak
from llama_jax.train.recipe import Recipe
from llama_jax.train.recipe_file import recipe_of, to_json
from llama_jax.train.report import Report
from llama_jax.train.saves import Saves
from llama_jax.train.state import TrainState, new_state, state_shapes
from llama_jax.train.token_folder import TokenFolder, open_tokens
from llama_jax.weights.params import Params, nested
from llama_jax.weights.table import weight_table
from llama_jax.weights.weight import padded_shape

RECIPE, METRICS, STATES, MODEL = "recipe.json", "metrics.jsonl", "states", "model"
MAY_CHANGE = ("steps", "mesh", "run")
"""What a run may go on with: more steps, other devices, other words."""


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
    folder = Path(folder)
    tokens = open_tokens(_given(recipe, "tokens"))
    mesh = _mesh(recipe)
    like, begin = _model(recipe, tokens, mesh)
    data = _data(recipe, open_tokens(tokens.path, vocab_size=like.config.vocab_size))
    if recipe.run.keep_best and data.validation is None:
        raise ValueError(
            f"keep_best=True compares evaluations, and {tokens.path} has no validation"
        )
    _keep_recipe(recipe, folder)
    saves = Saves(folder / STATES, keep=recipe.run.keep)
    try:
        state = saves.newest(state_shapes(recipe, like), say)
        if state is None:
            state = new_state(recipe, begin())
            say(f"{state.params} on {_devices(mesh)}, {data.order.rows:,} rows an epoch")
        else:
            say(f"going on after step {int(state.step):,}")
        report = _report(recipe, state, folder, say, data)

        def on_save(state: TrainState) -> None:
            save(_result(state, tokens.tokenizer), folder / MODEL, overwrite=True)

        def on_sample(state: TrainState) -> None:
            if sample is not None:
                for text in sample(_result(state, tokens.tokenizer), recipe.run.prompts):
                    say(f"  > {text}")

        state = run_steps(recipe, state, data, saves, report, on_save=on_save, on_sample=on_sample)
        if int(state.step) < recipe.steps:
            say(
                f"stopped after step {int(state.step):,} of {recipe.steps:,}; the same call goes on"
            )
    finally:
        saves.close()
    return folder / MODEL


def _given(recipe: Recipe, name: str) -> Any:
    value = getattr(recipe, name)
    if not value:
        raise ValueError(f"the recipe lacks {name}")
    return value


def _mesh(recipe: Recipe) -> jax.sharding.Mesh | None:
    m = recipe.mesh
    if m.data * m.fsdp * m.tensor == 1:
        return None
    return make_mesh(data=m.data, fsdp=m.fsdp, tensor=m.tensor)


def _devices(mesh: jax.sharding.Mesh | None) -> str:
    return "one device" if mesh is None else f"{mesh.size} devices"


def _model(
    recipe: Recipe, tokens: TokenFolder, mesh: jax.sharding.Mesh | None
) -> tuple[Params, Callable[[], Params]]:
    """The model as shapes, and a function that makes it."""
    model = _given(recipe, "model")
    if model.checkpoint:
        own = load_tokenizer(model.checkpoint)
        open_tokens(tokens.path, tokenizer=own)  # refuses another vocabulary
        like = shapes(model.checkpoint, mesh=mesh, dtype="float32")
        return like, lambda: load(model.checkpoint, mesh=mesh, dtype="float32")
    config = _config(model.config, model.fields, tokens)
    key = jax.random.key(recipe.seed)
    shardings = _shardings(config, mesh)
    begin = jax.jit(functools.partial(_padded_params, config, mesh), out_shardings=shardings)
    like = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        jax.eval_shape(functools.partial(_padded_params, config, mesh), key),
        shardings,
    )
    return like, lambda: begin(key)


def _config(name: str, fields: dict[str, Any], tokens: TokenFolder) -> Config:
    """The recipe's config, with the tokenizer's vocabulary unless the recipe states one."""
    if name.endswith(".json"):
        base = Config.from_json(json.loads(Path(name).read_text(encoding="utf-8")))
    else:
        base = Config.named(name)
    vocabulary = {}
    if tokens.tokenizer is not None:
        vocabulary = {"vocab_size": load_tokenizer(tokens.tokenizer).vocab_size}
    try:
        return Config.from_json(base.to_json() | vocabulary | fields)
    except ValueError as error:
        raise ValueError(f"[model.fields]: {error}") from None


def _padded_params(config: Config, mesh: jax.sharding.Mesh | None, key: Any) -> Params:
    """Random weights, with the zeros that the mesh needs."""
    params = init_params(key, config)
    if mesh is None:
        return params
    shardings = weight_shardings(config, mesh)

    def padded(path: Any, weight: Any) -> Any:
        sharding = shardings[tuple(key.key for key in path)]
        shape = padded_shape(weight.shape, sharding)
        return jnp.pad(weight, [(0, n - m) for n, m in zip(shape, weight.shape, strict=True)])

    return params.replace(weights=jax.tree_util.tree_map_with_path(padded, params.weights))


def _shardings(config: Config, mesh: jax.sharding.Mesh | None) -> Params:
    if mesh is None:
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        return Params(nested(dict.fromkeys(weight_table(config), here)), config)
    return Params(nested(weight_shardings(config, mesh)), config)


def _data(recipe: Recipe, tokens: TokenFolder) -> Data:
    shape: Any = {"time": recipe.step.context, "documents": recipe.step.documents}
    rows = rows_of(tokens.train, **shape)
    validation, per_token = None, None
    if tokens.validation is not None:
        validation = rows_of(tokens.validation, **shape)
        if tokens.validation.text_bytes:
            per_token = tokens.validation.text_bytes / len(tokens.validation)
    return Data(rows, rows.order(recipe.step.batch, seed=recipe.seed), validation, per_token)


def _keep_recipe(recipe: Recipe, folder: Path) -> None:
    """Writes the recipe; ValueError where the folder's run has another."""
    file = folder / RECIPE
    if file.exists():
        before = recipe_of(json.loads(file.read_text(encoding="utf-8")), str(file))
        for name, was, now in _differences(before, recipe):
            if name.split(".")[0] not in MAY_CHANGE:
                raise ValueError(
                    f"{folder} is a run with {name}={was!r}, and the recipe has {name}={now!r}; "
                    "choose another folder, or go on with the run's own recipe"
                )
    folder.mkdir(parents=True, exist_ok=True)
    replace_text(file, to_json(recipe) + "\n")


def _differences(one: Any, other: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The fields in which two recipes differ, and their values: "step.batch", 8, 16."""
    for field in dataclasses.fields(one):
        was, now = getattr(one, field.name), getattr(other, field.name)
        if dataclasses.is_dataclass(was) and type(was) is type(now):
            yield from _differences(was, now, f"{prefix}{field.name}.")
        elif was != now:
            yield prefix + field.name, was, now


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
        peak=recipe.run.peak_tflops * 1e12 or measured_peak(recipe.step.dtype),
        bytes_per_token=data.bytes_per_token,
    )


def _result(state: TrainState, tokenizer: Path | None) -> Params:
    """The model that a state has come to: its average, where the recipe asks for one."""
    params = state.params if state.average is None else state.average
    return params.replace(tokenizer=tokenizer)
