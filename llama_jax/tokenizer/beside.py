"""What the files beside a tokenizer say: Hugging Face spreads its settings over several."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from llama_jax.tokenizer.added import MAX_ID, AddedToken, check_added, few, read_added_tokens
from llama_jax.tokenizer.folder import MODEL_CONFIG, beside, is_there, read_object

_OBJECTS = (
    *("tokenizer_config.json", "special_tokens_map.json"),
    *("generation_config.json", "added_tokens.json"),
)
_MAX_UNKNOWN = 256
"""Control tokens without an id, each of which is looked for in a chat template."""


@dataclasses.dataclass(frozen=True)
class Stated:
    """What a folder states of its tokenizer, whatever kind the tokenizer's file is."""

    bos: tuple[str | int, ...] = ()
    """By name or id, the most telling file's first: a vocabulary may lack one."""
    eos: tuple[str | int, ...] = ()
    stop_ids: tuple[int, ...] = ()
    """The ids that generation_config.json and config.json end a completion at."""
    added: tuple[AddedToken, ...] = ()
    """By id."""
    controls: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """The control tokens that have a name: {"eos_token": "</s>", ...}."""
    adds_bos: bool | None = None
    """Whether a text gets a bos, where tokenizer_config.json says it."""
    is_llama: bool = False
    """Whether it is of transformers' LLaMA classes, which add a bos unless told otherwise."""
    legacy: bool = False
    """Whether a text after an added token gets a leading space, as the text's beginning does."""
    model_vocab_size: int = 0
    """The model's, which may be larger than the tokenizer's; 0 where no file says it."""
    notes: tuple[str, ...] = ()
    """What is stated and not followed."""

    def join(
        self, id_of: Callable[[str], int | None], vocab_size: int
    ) -> tuple[list[AddedToken], tuple[str, ...]]:
        """The added tokens that join a vocabulary, and notes on what of the folder's is ignored.

        The tokenizer's own file wins where the two contradict each other.
        """
        joining, notes = [], list(self.notes)
        for token in self.added:
            known = id_of(token.text)
            if known == token.id or (known is None and token.id >= vocab_size):
                joining.append(token)
                continue
            taken = "has another token there" if known is None else f"has it as {known}"
            notes.append(
                f"{token.text!r} is added as id {token.id}, and the tokenizer's own file {taken}: "
                "the addition is ignored"
            )
        texts = {token.text for token in joining}
        unknown = [
            f"{name} {text!r} is ignored: no file gives it an id"
            for name, text in self.controls.items()
            if text not in texts and id_of(text) is None
        ]
        if len(unknown) > _MAX_UNKNOWN:
            raise ValueError(
                f"the files beside it name {len(unknown):,} control tokens to which none gives an "
                f"id, and at most {_MAX_UNKNOWN} are ignored; copy or download them again"
            )
        return joining, (*few(notes), *few(unknown))

    def first(
        self,
        names: tuple[str | int, ...],
        id_of: Callable[[str], int | None],
        vocab_size: int,
    ) -> int | None:
        """The first of some tokens, each by name or id, that the tokenizer or the model has."""
        for name in names:
            id = id_of(name) if isinstance(name, str) else name
            if id is not None and id < max(vocab_size, self.model_vocab_size):
                return id
        return None

    def stops(self, eos: int, own: Iterable[int], vocab_size: int) -> tuple[int, ...]:
        """What ends a completion: eos, the folder's stop ids, and the tokenizer's own.

        An id of the model that the tokenizer has no token for counts too.
        """
        limit = max(vocab_size, self.model_vocab_size)
        stated = [id for id in self.stop_ids if id < limit]
        return tuple(dict.fromkeys([eos, *stated, *own]))


def read_stated(file: Path, template: str = "") -> Stated:
    """What the files beside a tokenizer's file say, each of which may be absent.

    A token of added_tokens.json that the chat template spells is a control token.
    """
    copied = beside(file, MODEL_CONFIG)
    objects = {name: read_object(beside(file, name)) for name in (*_OBJECTS, "params.json")}
    config = copied if is_there(copied) else beside(file, "config.json")
    objects["config.json"] = read_object(config)
    try:
        return stated_in(objects, template)
    except ValueError as error:
        raise ValueError(f"in {file.parent}, {error}") from error


def stated_in(objects: Mapping[str, dict[str, Any]], template: str = "") -> Stated:
    """What the objects in a folder's files say, by the files' names; any may be absent."""
    tokenizer, legacy, generation, by_text, model, metas = (
        objects.get(name, {}) for name in (*_OBJECTS, "config.json", "params.json")
    )

    def named(key: str) -> tuple[str | int, ...]:
        names = [_content(source.get(key)) for source in (tokenizer, legacy)]
        ids = _ids(generation, f"{key}_id") + _ids(model, f"{key}_id")
        return (*(name for name in names if name is not None), *ids)

    controls = {**_named(legacy, _OBJECTS[1]), **_named(tokenizer, _OBJECTS[0])}
    added, notes = read_added_tokens(
        tokenizer.get("added_tokens_decoder"),
        by_text,
        lambda text: text in controls.values() or text in template,
    )
    if tokenizer.get("add_eos_token") is True:
        notes.append(
            "add_eos_token in tokenizer_config.json is ignored: a prompt is not ended by an eos"
        )
    adds_bos, kind = tokenizer.get("add_bos_token"), tokenizer.get("tokenizer_class")
    return Stated(
        bos=named("bos_token"),
        eos=named("eos_token"),
        stop_ids=tuple(
            dict.fromkeys(_ids(generation, "eos_token_id") + _ids(model, "eos_token_id"))
        ),
        added=tuple(added),
        controls=controls,
        adds_bos=adds_bos if isinstance(adds_bos, bool) else None,
        is_llama=isinstance(kind, str) and kind.startswith("Llama"),
        legacy=tokenizer.get("legacy") is True,
        model_vocab_size=max(_ids(model, "vocab_size") + _ids(metas, "vocab_size"), default=0),
        notes=tuple(notes),
    )


def _named(source: Mapping[str, Any], name: str) -> dict[str, str]:
    """The control tokens that a file names: "bos_token" and its like, and the additional ones."""
    found = {key: _content(token) for key, token in source.items() if key.endswith("_token")}
    more = source.get("additional_special_tokens")
    several = [_content(token) for token in (more if isinstance(more, list) else ())]
    check_added([text for text in (*found.values(), *several) if text], name)
    found |= {f"additional_special_tokens[{n}]": text for n, text in enumerate(several)}
    return {key: text for key, text in found.items() if text}


def _content(token: Any) -> str | None:
    """A token is a text, or an object that holds it."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _ids(source: dict[str, Any], key: str) -> list[int]:
    """One id, or a list of them. A negative one, or none, means that there is none."""
    value = source.get(key)
    values = value if isinstance(value, list) else [value]
    return [
        id for id in values if isinstance(id, int) and not isinstance(id, bool) and 0 <= id < MAX_ID
    ]
