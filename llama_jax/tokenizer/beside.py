"""What the files beside a tokenizer say: Hugging Face spreads its settings over several."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

MODEL_CONFIG = "huggingface_config.json"
"""What a copy calls the model's config.json, which states ids too: a native checkpoint has a
config.json of its own."""
FILES = (
    *("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("generation_config.json", "chat_template.jinja", MODEL_CONFIG),
)
"""What may lie beside a tokenizer's file, by the names that a copy has."""
_MAX_BYTES = 16 * 2**20


@dataclasses.dataclass(frozen=True)
class SpecialTokens:
    """Which tokens begin and end a text."""

    bos: tuple[str | int, ...]
    """By name or id, the most telling file's first: a vocabulary may lack one."""
    eos: tuple[str | int, ...]
    stop_ids: tuple[int, ...]
    """The ids that generation_config.json and config.json end a completion at."""
    adds_bos: bool | None
    """Whether a text gets a bos, where tokenizer_config.json says it."""
    is_llama: bool
    """Whether it is of transformers' LLaMA classes, which add a bos unless told otherwise."""


def tokenizer_files(file: Path) -> dict[str, Path]:
    """A tokenizer's file and all that it needs of its folder, by the names a copy gives them."""
    found = {name: file.with_name(name) for name in FILES if file.with_name(name).is_file()}
    config = file.with_name("config.json")
    if MODEL_CONFIG not in found and _is_models(config):
        found[MODEL_CONFIG] = config
    return {file.name: file, **found}


def read_special_tokens(folder: Path) -> SpecialTokens:
    """What the files in `folder` say, each of which may be absent."""
    tokenizer = read_object(folder / "tokenizer_config.json")
    legacy = read_object(folder / "special_tokens_map.json")
    generation = read_object(folder / "generation_config.json")
    copied = folder / MODEL_CONFIG
    model = read_object(copied if copied.is_file() else folder / "config.json")

    def named(key: str) -> tuple[str | int, ...]:
        names = [_content(source.get(key)) for source in (tokenizer, legacy)]
        ids = _ids(generation, f"{key}_id") + _ids(model, f"{key}_id")
        return (*(name for name in names if name is not None), *ids)

    adds_bos, kind = tokenizer.get("add_bos_token"), tokenizer.get("tokenizer_class")
    return SpecialTokens(
        bos=named("bos_token"),
        eos=named("eos_token"),
        stop_ids=tuple(
            dict.fromkeys(_ids(generation, "eos_token_id") + _ids(model, "eos_token_id"))
        ),
        adds_bos=adds_bos if isinstance(adds_bos, bool) else None,
        is_llama=isinstance(kind, str) and kind.startswith("Llama"),
    )


def _content(token: Any) -> str | None:
    """A token is a text, or an object that holds it."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _ids(source: dict[str, Any], key: str) -> list[int]:
    """One id, or a list of them. A negative one, or none, means that there is none."""
    value = source.get(key)
    values = value if isinstance(value, list) else [value]
    return [id for id in values if isinstance(id, int) and not isinstance(id, bool) and id >= 0]


def _is_models(config: Path) -> bool:
    try:
        return not read_object(config).keys().isdisjoint(("model_type", "architectures"))
    except ValueError:
        return False


def read_bounded(file: Path) -> bytes:
    """A stranger's file, which must not be endless."""
    with file.open("rb") as opened:
        found = opened.read(_MAX_BYTES + 1)
    if len(found) > _MAX_BYTES:
        raise ValueError(f"{file} has more than {_MAX_BYTES:,} bytes; it is not a tokenizer's")
    return found


def read_object(file: Path) -> dict[str, Any]:
    """The object in a JSON file of a stranger's; an empty one where there is no file."""
    if not file.is_file():
        return {}
    text = read_bounded(file)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not JSON ({error}); copy or download it again") from error
    if not isinstance(value, dict):
        raise ValueError(f"{file} is no JSON object; copy or download it again")
    return value
