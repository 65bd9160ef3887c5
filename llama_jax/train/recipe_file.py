"""Recipes as TOML files: read, with every key and type checked, and written as they were run."""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_origin, get_type_hints

from llama_jax.config import Config
from llama_jax.train.recipe import Lora, Mesh, Model, Optimizer, Recipe, Run, Step

SECTIONS = {
    "model": Model,
    "optimizer": Optimizer,
    "step": Step,
    "lora": Lora,
    "mesh": Mesh,
    "run": Run,
}
"""The tables of a recipe file, and what each becomes."""


def read_recipe(
    path: str | os.PathLike[str], changes: Sequence[str] = (), *, named: str | None = None
) -> Recipe:
    """The recipe of a TOML file, after changes such as "optimizer.learning_rate=1e-3".

    ValueError names an unknown key and the nearest known one, a value of another type, or a file
    that is no TOML. `named` is what it calls the recipe: by default the file.
    """
    path = Path(path)
    try:
        fields = tomllib.loads(path.read_text(encoding="utf-8-sig"))  # editors write a mark
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no TOML: {error}") from None
    for change in changes:
        _set(fields, change)
    return recipe_of(fields, named or str(path))


def recipe_of(fields: dict[str, Any], what: str) -> Recipe:
    """A recipe from nested dicts, as TOML or JSON gives them. `what` is named in errors."""
    plain = {key: value for key, value in fields.items() if key not in SECTIONS}
    _check_keys(Recipe, fields, what)
    if "steps" not in fields:
        raise ValueError(f"{what} lacks steps: how many steps the run has")
    sections = {}
    for name, section in SECTIONS.items():
        if fields.get(name) is not None:
            sections[name] = _section(section, fields[name], f"{what}, [{name}]")
    return _made(Recipe, plain | sections, what)


def _section(section: type, fields: Any, what: str) -> Any:
    if not isinstance(fields, dict):
        raise ValueError(f"{what} must be a table of keys, not {fields!r}")
    _check_keys(section, fields, what)
    types = get_type_hints(section)
    if section is Model and isinstance(fields.get("fields"), dict):
        _check_keys(Config, fields["fields"], f"{what[:-1]}.fields]")
    lists = {k: _strings(k, v, what) for k, v in fields.items() if get_origin(types[k]) is tuple}
    return _made(section, fields | lists, what)


def _strings(name: str, value: Any, what: str) -> tuple[str, ...]:
    if isinstance(value, list | tuple) and all(isinstance(one, str) for one in value):
        return tuple(value)
    raise ValueError(f'{what}: {name}={value!r} must be a list of strings: ["a", "b"]')


def _made(kind: type, fields: dict[str, Any], what: str) -> Any:
    types = get_type_hints(kind)
    for name, value in fields.items():
        if types[name] is str and not isinstance(value, str):
            raise ValueError(f"{what}: {name}={value!r} must be a string in quotes")
    try:
        return kind(**fields)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from None


THEIRS = {
    **dict.fromkeys(("lr", "max_lr"), "learning_rate"),
    **dict.fromkeys(("batch_size", "global_batch_size"), "batch"),
    **dict.fromkeys(("block_size", "seq_len", "seq_length", "max_seq_len"), "context"),
    **dict.fromkeys(("grad_accum", "gradient_accumulation_steps"), "micro_batches"),
    **dict.fromkeys(("max_steps", "max_iters", "train_steps"), "steps"),
    **dict.fromkeys(("warmup_steps", "warmup_iters"), "warmup"),
    **dict.fromkeys(("grad_clip", "max_grad_norm"), "clip"),
    **{"wd": "weight_decay", "r": "rank", "lora_alpha": "alpha", "target_modules": "targets"},
}
"""Other trainers' words for our keys."""


def _check_keys(kind: type, fields: dict[str, Any], what: str) -> None:
    known = [field.name for field in dataclasses.fields(kind)]
    for key in fields:
        if key in known:
            continue
        ours = THEIRS.get(key, key)
        near = [ours] if ours in known else difflib.get_close_matches(key, known, 1, cutoff=0.6)
        elsewhere = [
            f"[{name}] {ours}"
            for name, section in SECTIONS.items()
            if ours in {field.name for field in dataclasses.fields(section)}
        ]
        if ours in {field.name for field in dataclasses.fields(Recipe)} - SECTIONS.keys():
            elsewhere.append(f"{ours}, before the first [table]")
        hint = elsewhere or near if ours not in known else near
        way_out = f"did you mean {hint[0]}?" if hint else f"the keys are {', '.join(known)}"
        raise ValueError(f"{what}: the key {key!r} is unknown; {way_out}")


def _set(fields: dict[str, Any], change: str) -> None:
    """Applies "section.key=value"; a value that is no TOML is a string."""
    key, equals, text = change.partition("=")
    if not equals or not key.strip():
        raise ValueError(f"--set {change!r} must be KEY=VALUE: --set optimizer.learning_rate=1e-3")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *tables, last = key.strip().split(".")
    for table in tables:
        fields = fields.setdefault(table, {})
        if not isinstance(fields, dict):
            raise ValueError(f"--set {change!r}: {table} is no table of keys")
    fields[last] = value


def to_json(recipe: Recipe) -> str:
    """The recipe as JSON, which `recipe_of` reads: what a run keeps of it."""
    return json.dumps(dataclasses.asdict(recipe), indent=1)
