"""A checkpoint's own chat template, as Hugging Face's folders carry it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from llama_jax.tokenizer.beside import read_bounded, read_object
from llama_jax.tokenizer.hidden_controls import Encode, HiddenControls
from llama_jax.tokenizer.messages import checked_messages, checked_tools, rebuilt
from llama_jax.tokenizer.protocol import Message, Tools

_NO_DEFAULT = "{{ raise_exception('of several templates none is named default') }}"
ROLES = ("system", "developer", "user", "assistant", "tool", "ipython", "function")


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """A template and the tokens it may write by name: {"bos_token": "<s>", ...}."""

    source: str
    tokens: Mapping[str, str]
    tool_source: str | None = None
    """The template for dialogs with tools, where the checkpoint has another one for them."""
    where: str = dataclasses.field(default="", compare=False)
    """The file that it lies in, for errors."""

    @property
    def marks_answers(self) -> bool:
        """Whether it says by `{% generation %}` what the assistant wrote."""
        return re.search(r"\{%[-+]?\s*generation\b", self.source) is not None

    def source_for(self, tools: Tools | None) -> str:
        """The template that writes a dialog with these tools, or none."""
        return self.tool_source if tools and self.tool_source is not None else self.source

    def check(self) -> None:
        """ValueError where the template is not Jinja."""
        with self._named():
            _compiled(self.source)

    def render(
        self,
        messages: Sequence[Message],
        tools: Tools | None = None,
        *,
        opened: bool = True,
        marks: tuple[str, str] = ("", ""),
        hide: Callable[[str], str] = str,
    ) -> str:
        """The dialog as the template writes it; `opened`, up to where the assistant answers.

        `marks` are written around each part that `{% generation %}` encloses. The template sees
        each text of the messages and the tools as `hide` returns it.
        """
        from llama_jax.tokenizer.sandbox import ANSWER, render

        messages, tools = checked_messages(messages, ROLES), checked_tools(tools)
        with self._named():
            template, read = _compiled(self.source_for(tools))
        if tools and "tools" not in read:
            raise ValueError(
                "the model's chat template does not write tools=; describe them in the system "
                "message, as the model's card says"
            )
        variables = {
            "messages": [rebuilt(value, f"message {i}", hide) for i, value in enumerate(messages)],
            "tools": tools and [rebuilt(tool, f"tool {i}", hide) for i, tool in enumerate(tools)],
            "documents": None,
            **self.tokens,
            **dict(zip(ANSWER, marks, strict=True)),
        }
        with self._named():
            return render(template, {**variables, "add_generation_prompt": opened})

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except ValueError as error:
            said = f"{error}; the template is that of {self.where}" if self.where else str(error)
            raise ValueError(said) from None


@functools.lru_cache(maxsize=8)
def _compiled(source: str) -> tuple[Any, set[str]]:
    """A template, and the variables that it reads."""
    from llama_jax.tokenizer.sandbox import compile_template, variables_of

    return compile_template(source), variables_of(source)


def read_chat_template(folder: str | PathLike[str]) -> ChatTemplate | None:
    """The template in `folder`, None without one.

    It is chat_template.jinja's, tokenizer_config.json's, or chat_template.json's, the file of a
    processor. Of several, the one named "default", and for dialogs with tools the one named
    "tool_use".
    """
    folder = Path(folder)
    where, own = folder / "tokenizer_config.json", folder / "chat_template.jinja"
    config, legacy = read_object(where), read_object(folder / "special_tokens_map.json")
    if own.is_file():
        config, where = {**config, "chat_template": _read_text(own)}, own
    elif config.get("chat_template") is None:
        where = folder / "chat_template.json"
        config = {**config, "chat_template": read_object(where).get("chat_template")}
    return template_in({**legacy, **config}, str(where))


def template_in(config: Mapping[str, Any], where: str) -> ChatTemplate | None:
    """The template in the object of a tokenizer_config.json, which lies at `where`."""
    source, for_tools = config.get("chat_template"), None
    if isinstance(source, list):
        named = [entry for entry in source if isinstance(entry, dict)]
        sources = {entry.get("name"): entry.get("template") for entry in named}
        for_tools = sources.get("tool_use")
        source = sources.get("default", _NO_DEFAULT if named else None)
    if source is None:
        return None
    for text in (source, "" if for_tools is None else for_tools):
        if not isinstance(text, str):
            raise ValueError(
                f"chat_template in {where} is a {type(text).__name__}; "
                "it must be a str, or a list of names and templates"
            )
    return ChatTemplate(source, dict(_named_tokens(config)), for_tools, where)


def encode_with_template(
    template: ChatTemplate,
    messages: Sequence[Message],
    *,
    tools: Tools | None = None,
    encode: Encode[int],
    special: Mapping[str, int],
    opened: bool = True,
) -> list[int]:
    """The ids of a dialog: a control token that the template writes is one, a message's is text.

    `special` are their spellings and ids. Where a message spells one, the template is shown digits
    in its place. Bos stands where the template writes it, if it does. `opened` dialogs go on to
    where the assistant answers.
    """
    hidden = HiddenControls(special)
    rendered = template.render(messages, tools, opened=opened, hide=hidden.hide)
    return hidden.encode(rendered, encode)


def turn_end(
    template: ChatTemplate,
    messages: Sequence[Message],
    *,
    tools: Tools | None = None,
    special: Mapping[str, int],
) -> str | None:
    """The control token that the template writes after the answer to a dialog; None without one."""
    hidden = HiddenControls(special)
    answer = hidden.placeholder
    dialog = [*messages, {"role": "assistant", "content": answer}]
    try:
        written = template.render(dialog, tools, opened=False, hide=hidden.hide)
    except ValueError:  # it may refuse: what the user has to know, `encode_with_template` says
        return None
    _, found, after = written.rpartition(answer)
    return hidden.begins(after.lstrip()) if found else None


def _read_text(file: Path) -> str:
    try:
        return read_bounded(file).decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 ({error}); copy or download it again") from None


def _named_tokens(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, token in config.items():
        text = token.get("content") if isinstance(token, Mapping) else token
        if name.endswith("_token") and isinstance(text, str):
            yield name, text
