"""Dialogs to ids by a checkpoint's own chat template, as Hugging Face's folders carry it."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from llama_jax.tokenizer.beside import read_bounded, read_object
from llama_jax.tokenizer.dialog import check_messages
from llama_jax.tokenizer.protocol import Message

ROLES = ("system", "developer", "user", "assistant", "tool", "ipython", "function")


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """A template and the tokens it may write by name: {"bos_token": "<s>", ...}."""

    source: str
    tokens: Mapping[str, str]

    def render(self, messages: Sequence[Message]) -> str:
        """The dialog as the template writes it, up to where the assistant answers."""
        from llama_jax.tokenizer.sandbox import render

        variables = {"messages": messages, "tools": None, "documents": None, **self.tokens}
        return render(self._compiled, {**variables, "add_generation_prompt": True})

    @functools.cached_property
    def _compiled(self) -> Any:
        from llama_jax.tokenizer.sandbox import compile_template

        return compile_template(self.source)


def read_chat_template(folder: str | PathLike[str]) -> ChatTemplate | None:
    """The template in `folder`: chat_template.jinja, or tokenizer_config.json's; None without one.

    Of several, the one named "default".
    """
    folder = Path(folder)
    config = read_object(folder / "tokenizer_config.json")
    own = folder / "chat_template.jinja"
    source = read_bounded(own).decode() if own.is_file() else config.get("chat_template")
    if isinstance(source, list):
        named = [entry for entry in source if isinstance(entry, dict)]
        source = {entry.get("name"): entry.get("template") for entry in named}.get("default")
    if source is None:
        return None
    if not isinstance(source, str):
        raise ValueError(
            f"chat_template in {folder / 'tokenizer_config.json'} is a {type(source).__name__}; "
            "it must be a str, or a list of names and templates"
        )
    tokens = {**read_object(folder / "special_tokens_map.json"), **config}
    return ChatTemplate(source, dict(_named_tokens(tokens)))


def encode_with_template(
    template: ChatTemplate,
    messages: Sequence[Message],
    *,
    encode: Callable[[str], list[int]],
    encode_text: Callable[[str], list[int]],
    special: Mapping[str, int],
) -> list[int]:
    """The ids of a dialog: a control token that the template writes is one, a message's is text.

    `encode` knows the control tokens in a text and adds none, `encode_text` knows none, and
    `special` are their spellings and ids. Where a message spells one, the template is shown digits
    in its place. Bos stands where the template writes it, if it does.
    """
    check_messages(messages, ROLES)
    longest_first = sorted(special, key=len, reverse=True)
    control = re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")
    mark = f"{secrets.randbits(128):039d}"  # nobody can forge it, and no template changes digits
    shown = {name: f"{mark}{n:06d}" for n, name in enumerate(special)}
    spelled = {digits: name for name, digits in shown.items()}

    def hide(text: str) -> str:
        return control.sub(lambda found: shown[found[0]], text)

    rendered = template.render([_rebuilt(message, i, hide) for i, message in enumerate(messages)])
    pieces = control.split(rendered)  # text, control token, text, ..., text
    plain = [mark in piece for piece in pieces]
    if not any(plain):
        ids = encode(rendered)
        controls = set(special.values()).difference(encode_text(rendered))  # text may make unk
        if sum(id in controls for id in ids) <= len(pieces) // 2:
            return ids
        # A normalizer made a control token of a text that spells none.
        plain = [n % 2 == 0 and piece != "" for n, piece in enumerate(pieces)]
    ids = []
    for is_plain, run in itertools.groupby(range(len(pieces)), plain.__getitem__):
        text = "".join(pieces[n] for n in run)
        text = re.sub(mark + "[0-9]{6}", lambda found: spelled[found[0]], text)
        ids += encode_text(text) if is_plain else encode(text)
    return ids


def _rebuilt(value: Any, index: int, hide: Callable[[str], str]) -> Any:
    """`value` of message `index` in Python's own types, which lend a template no other methods."""
    if isinstance(value, str):
        return hide(str(value))
    if value is None or type(value) in (bool, int, float):
        return value
    if isinstance(value, Mapping):
        return {
            _rebuilt(key, index, hide): _rebuilt(item, index, hide) for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_rebuilt(item, index, hide) for item in value]
    raise ValueError(
        f"message {index} holds a {type(value).__name__}; a chat template takes what JSON knows: "
        "str, int, float, bool, None, lists and dicts"
    )


def _named_tokens(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, token in config.items():
        text = token.get("content") if isinstance(token, Mapping) else token
        if name.endswith("_token") and isinstance(text, str):
            yield name, text
