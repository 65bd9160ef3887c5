"""Dialogs to ids by a checkpoint's own chat template, as Hugging Face's folders carry it."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from llama_jax.tokenizer.beside import read_bounded, read_object
from llama_jax.tokenizer.messages import checked_messages, checked_tools
from llama_jax.tokenizer.protocol import Message, Tools

ROLES = ("system", "developer", "user", "assistant", "tool", "ipython", "function")


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """A template and the tokens it may write by name: {"bos_token": "<s>", ...}."""

    source: str
    tokens: Mapping[str, str]
    tool_source: str | None = None
    """The template for dialogs with tools, where the checkpoint has another one for them."""

    def render(
        self, messages: Sequence[Message], tools: Tools | None = None, *, answers: bool = True
    ) -> str:
        """The dialog as the template writes it, up to where the assistant answers.

        Without `answers` it ends with the last message.
        """
        from llama_jax.tokenizer.sandbox import render

        messages, tools = checked_messages(messages, ROLES), checked_tools(tools)
        source = self.tool_source if tools and self.tool_source is not None else self.source
        template, read = _compiled(source)
        if tools and "tools" not in read:
            raise ValueError(
                "the model's chat template does not write tools=; describe them in the system "
                "message, as the model's card says"
            )
        variables = {"messages": messages, "tools": tools, "documents": None, **self.tokens}
        return render(template, {**variables, "add_generation_prompt": answers})


@functools.lru_cache(maxsize=8)
def _compiled(source: str) -> tuple[Any, set[str]]:
    """A template, and the variables that it reads."""
    from llama_jax.tokenizer.sandbox import compile_template, variables_of

    return compile_template(source), variables_of(source)


def read_chat_template(folder: str | PathLike[str]) -> ChatTemplate | None:
    """The template in `folder`: chat_template.jinja, or tokenizer_config.json's; None without one.

    Of several, the one named "default", and for dialogs with tools the one named "tool_use".
    """
    folder = Path(folder)
    config = read_object(folder / "tokenizer_config.json")
    source, for_tools, own = config.get("chat_template"), None, folder / "chat_template.jinja"
    if own.is_file():
        source = _read_text(own)
    elif isinstance(source, list):
        named = [entry for entry in source if isinstance(entry, dict)]
        sources = {entry.get("name"): entry.get("template") for entry in named}
        source, for_tools = sources.get("default"), sources.get("tool_use")
    if source is None:
        return None
    for text in (source, "" if for_tools is None else for_tools):
        if not isinstance(text, str):
            raise ValueError(
                f"chat_template in {folder / 'tokenizer_config.json'} is a {type(text).__name__}; "
                "it must be a str, or a list of names and templates"
            )
    tokens = {**read_object(folder / "special_tokens_map.json"), **config}
    return ChatTemplate(source, dict(_named_tokens(tokens)), for_tools)


def _read_text(file: Path) -> str:
    try:
        return read_bounded(file).decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 ({error}); copy or download it again") from None


def encode_with_template(
    template: ChatTemplate,
    messages: Sequence[Message],
    *,
    tools: Tools | None = None,
    encode: Callable[[str], list[int]],
    encode_text: Callable[[str], list[int]],
    special: Mapping[str, int],
) -> list[int]:
    """The ids of a dialog: a control token that the template writes is one, a message's is text.

    `encode` knows the control tokens in a text and adds none, `encode_text` knows none, and
    `special` are their spellings and ids. Where a message spells one, the template is shown digits
    in its place. Bos stands where the template writes it, if it does.
    """
    known = _Spellings(special)
    rendered = template.render(*known.hidden(messages, tools))
    pieces = known.control.split(rendered)  # text, control token, text, ..., text
    plain = [known.mark in piece for piece in pieces]
    if not any(plain):
        ids = encode(rendered)
        controls = set(special.values()).difference(encode_text(rendered))  # text may make unk
        if sum(id in controls for id in ids) <= len(pieces) // 2:
            return ids
        # A normalizer made a control token of a text that spells none.
        plain = [n % 2 == 0 and piece != "" for n, piece in enumerate(pieces)]
    ids = []
    for is_plain, run in itertools.groupby(range(len(pieces)), plain.__getitem__):
        text = known.shown("".join(pieces[n] for n in run))
        ids += encode_text(text) if is_plain else encode(text)
    return ids


def turn_end(
    template: ChatTemplate,
    messages: Sequence[Message],
    *,
    tools: Tools | None = None,
    special: Mapping[str, int],
) -> str | None:
    """The control token that the template writes after the answer to a dialog; None without one."""
    known = _Spellings(special)
    dialog, described = known.hidden(messages, tools)
    answer = f"{known.mark}{len(special):06d}"
    try:
        dialog = [*dialog, {"role": "assistant", "content": answer}]
        written = template.render(dialog, described, answers=False)
    except ValueError:  # it may refuse: what the user has to know, `encode_with_template` says
        return None
    _, found, after = written.rpartition(answer)
    end = known.control.match(after.lstrip())
    return end[0] if found and end else None


class WithTemplate:
    """What a tokenizer knows of dialogs where its folder has a chat template."""

    _template: ChatTemplate | None = None
    special: Mapping[str, int]

    def turn_end(
        self, messages: Sequence[Message], *, tools: Tools | None = None
    ) -> tuple[str, int] | None:
        """The control token that ends an answer, by the chat template, and its id."""
        if self._template is None:
            return None
        name = turn_end(self._template, messages, tools=tools, special=self.special)
        return None if name is None else (name, self.special[name])


class _Spellings:
    """The spellings of control tokens, and digits that stand for them where messages have them."""

    def __init__(self, names: Iterable[str]) -> None:
        longest_first = sorted(names, key=len, reverse=True)
        self.control = re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")
        # Nobody can forge the mark, and no template changes digits.
        self.mark = f"{secrets.randbits(128):039d}"
        self._digits = {name: f"{self.mark}{n:06d}" for n, name in enumerate(longest_first)}
        self._names = {digits: name for name, digits in self._digits.items()}

    def hidden(
        self, messages: Sequence[Message], tools: Tools | None
    ) -> tuple[list[Any], list[Any] | None]:
        """The messages and the tools, with digits for each control token that they spell."""

        def hide(text: str) -> str:
            return self.control.sub(lambda found: self._digits[found[0]], text)

        checked, described = checked_messages(messages, ROLES), checked_tools(tools)
        return (
            [_rebuilt_whole(message, f"message {i}", hide) for i, message in enumerate(checked)],
            described
            and [_rebuilt_whole(tool, f"tool {i}", hide) for i, tool in enumerate(described)],
        )

    def shown(self, text: str) -> str:
        """`text` with the spellings in the digits' place."""
        return re.sub(self.mark + "[0-9]{6}", lambda found: self._names[found[0]], text)


def _rebuilt_whole(value: Any, where: str, hide: Callable[[str], str]) -> Any:
    try:
        return _rebuilt(value, where, hide)
    except RecursionError:
        raise ValueError(
            f"{where} holds lists or dicts nested too deeply, or in themselves; "
            "a chat template takes what JSON knows"
        ) from None


def _rebuilt(value: Any, where: str, hide: Callable[[str], str]) -> Any:
    """`value` in Python's own types, which lend a template no other methods."""
    if isinstance(value, str):
        return hide(str(value))
    if value is None or type(value) in (bool, int, float):
        return value
    if isinstance(value, Mapping):
        return {
            _rebuilt(key, where, hide): _rebuilt(item, where, hide) for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_rebuilt(item, where, hide) for item in value]
    raise ValueError(
        f"{where} holds a {type(value).__name__}; a chat template takes what JSON knows: "
        "str, int, float, bool, None, lists and dicts"
    )


def _named_tokens(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, token in config.items():
        text = token.get("content") if isinstance(token, Mapping) else token
        if name.endswith("_token") and isinstance(text, str):
            yield name, text
