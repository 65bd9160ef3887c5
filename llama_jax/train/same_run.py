"""Whether a folder's run is the one that a recipe asks for: its recipe and its tokens."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from llama_jax.checkpoint.files.json_file import read_object, replace_text
from llama_jax.tokenizer.folder import is_there
from llama_jax.train.recipe import Recipe
from llama_jax.train.recipe_file import recipe_of, to_json
from llama_jax.train.token_folder import TRAIN, TokenFolder

RECIPE, TOKENS = "recipe.json", "tokens.json"
MAY_CHANGE = ("steps", "mesh", "run")
"""What a run may go on with: more steps, other devices, other words."""


def keep_recipe(recipe: Recipe, tokens: TokenFolder, folder: Path) -> None:
    """Writes the recipe, and which tokens are trained; ValueError where the run has others.

    The order of the rows is a function of their number. On other tokens under the same name a run
    would not read each row once.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file, and a run is a folder; name another")
    file = folder / RECIPE
    if is_there(file):
        before = recipe_of(read_object(file), str(file))
        for name, was, now in _differences(before, recipe):
            if name.split(".")[0] not in MAY_CHANGE:
                raise ValueError(
                    f"{folder} is a run with {name}={was!r}, and the recipe has {name}={now!r}; "
                    "choose another folder, or go on with the run's own recipe"
                )
    trained = folder / TOKENS
    if is_there(trained) and read_object(trained) != _trained_on(tokens):
        raise ValueError(
            f"{folder} is a run on other tokens than {tokens.path} holds now; choose another "
            "folder, where [model] checkpoint = goes on from this run's model"
        )
    folder.mkdir(parents=True, exist_ok=True)
    if jax.process_index() == 0:
        replace_text(file, to_json(recipe) + "\n")
        replace_text(trained, json.dumps(_trained_on(tokens)) + "\n")


def _trained_on(tokens: TokenFolder) -> dict[str, Any]:
    """What tells the tokens of one run from another's: others' files have no sha256."""
    shards = tokens.manifest["splits"][TRAIN]["shards"] if tokens.manifest else []
    return {"tokens": len(tokens.train), "sha256": [shard["sha256"] for shard in shards]}


def _differences(one: Any, other: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The fields in which two recipes differ, and their values: "step.batch", 8, 16."""
    for field in dataclasses.fields(one):
        was, now = getattr(one, field.name), getattr(other, field.name)
        if dataclasses.is_dataclass(was) and type(was) is type(now):
            yield from _differences(was, now, f"{prefix}{field.name}.")
        elif was != now:
            yield prefix + field.name, was, now
