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

    @property
    def marks_answers(self) -> bool:
        """Whether it says by `{% generation %}` what the assistant wrote."""
        return re.search(r"\{%[-+]?\s*generation\b", self.source) is not None

    def render(
        self, messages: Sequence[Message], *, opened: bool = True, marks: tuple[str, str] = ("", "")
    ) -> str:
        """The dialog as the template writes it; `opened`, up to where the assistant answers.

        `marks` are written around each part that `{% generation %}` encloses.
        """
        from llama_jax.tokenizer.sandbox import ANSWER, render

        variables = {"messages": messages, "tools": None, "documents": None, **self.tokens}
        variables |= dict(zip(ANSWER, marks, strict=True))
        return render(self._compiled, {**variables, "add_generation_prompt": opened})

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
    opened: bool = True,
) -> list[int]:
    """The ids of a dialog: a control token that the template writes is one, a message's is text.

    `encode` knows the control tokens in a text and adds none, `encode_text` knows none, and
    `special` are their spellings and ids. Where a message spells one, the template is shown digits
    in its place. Bos stands where the template writes it, if it does. `opened` dialogs go on to
    where the assistant answers.
    """
    hidden = HiddenControls(special)
    rendered = template.render(hidden.messages(messages), opened=opened)
    runs = hidden.runs(rendered, encode, encode_text)
    return [id for text, plain in runs for id in (encode_text if plain else encode)(text)]


class HiddenControls:
    """Control tokens that messages spell, hidden from a template behind digits of its own."""

    def __init__(self, special: Mapping[str, int]) -> None:
        self._special = special
        longest_first = sorted(special, key=len, reverse=True)
        self._control = re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")
        # Nobody can forge the mark, and no template changes digits.
        self._mark = f"{secrets.randbits(128):039d}"
        self._shown = {name: f"{self._mark}{n:06d}" for n, name in enumerate(special)}
        self._spelled = {digits: name for name, digits in self._shown.items()}

    def messages(self, messages: Sequence[Message]) -> list[Any]:
        """The messages as a template may see them."""
        check_messages(messages, ROLES)
        return [_rebuilt(message, i, self._hide) for i, message in enumerate(messages)]

    def revealed(self, text: str) -> str:
        """A text with what was hidden in it."""
        return re.sub(self._mark + "[0-9]{6}", lambda found: self._spelled[found[0]], text)

    def runs(
        self,
        rendered: str,
        encode: Callable[[str], list[int]],
        encode_text: Callable[[str], list[int]],
    ) -> list[tuple[str, bool]]:
        """The rendered text, revealed, in runs; of each whether no control token is in it."""
        pieces = self._control.split(rendered)  # text, control token, text, ..., text
        plain = [self._mark in piece for piece in pieces]
        if not any(plain):
            ids = encode(rendered)
            # Text may make unk.
            controls = set(self._special.values()).difference(encode_text(rendered))
            if sum(id in controls for id in ids) <= len(pieces) // 2:
                return [(rendered, False)]
            # A normalizer made a control token of a text that spells none.
            plain = [n % 2 == 0 and piece != "" for n, piece in enumerate(pieces)]
        grouped = itertools.groupby(range(len(pieces)), plain.__getitem__)
        return [
            (self.revealed("".join(pieces[n] for n in run)), is_plain) for is_plain, run in grouped
        ]

    def _hide(self, text: str) -> str:
        return self._control.sub(lambda found: self._shown[found[0]], text)


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
