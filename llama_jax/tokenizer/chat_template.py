"""A checkpoint's own chat template, as Hugging Face's folders carry it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llama_jax.tokenizer.folder import beside, is_there, read_bounded, read_object, templates_beside
from llama_jax.tokenizer.hidden_controls import Encode, HiddenControls
from llama_jax.tokenizer.messages import checked_messages, checked_tools, rebuilt
from llama_jax.tokenizer.protocol import Message, Tools
from llama_jax.tokenizer.text_parts import may_take_parts

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
    notes: tuple[str, ...] = dataclasses.field(default=(), compare=False)
    """What is there and not used."""

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
            return render(
                template,
                {**variables, "add_generation_prompt": opened},
                may_take_parts=may_take_parts(self.source_for(tools)),
            )

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


def read_chat_template(file: Path) -> ChatTemplate | None:
    """The template beside a tokenizer's file, None without one.

    It is chat_template.jinja's, with those of additional_chat_templates by name; or
    tokenizer_config.json's; or chat_template.json's, the file of a processor. Of several, the one
    named "default", and for dialogs with tools the one named "tool_use".
    """
    where, own = beside(file, "tokenizer_config.json"), beside(file, "chat_template.jinja")
    config, legacy = read_object(where), read_object(beside(file, "special_tokens_map.json"))
    named = {name: _read_text(one) for name, one in templates_beside(file).items()}
    if is_there(own):
        named["default"], where = _read_text(own), own
    if named:
        several = [{"name": name, "template": text} for name, text in named.items()]
        config = {**config, "chat_template": several}
    elif config.get("chat_template") is None:
        where = beside(file, "chat_template.json")
        config = {**config, "chat_template": read_object(where).get("chat_template")}
    return template_in({**legacy, **config}, str(where))


def template_in(config: Mapping[str, Any], where: str) -> ChatTemplate | None:
    """The template in the object of a tokenizer_config.json, which lies at `where`."""
    source, for_tools, unused = config.get("chat_template"), None, ""
    if isinstance(source, list):
        named = [entry for entry in source if isinstance(entry, dict)]
        sources = {entry.get("name"): entry.get("template") for entry in named}
        for_tools = sources.get("tool_use")
        source = sources.get("default", _NO_DEFAULT if named else None)
        unused = ", ".join(sorted(repr(name) for name in sources.keys() - {"default", "tool_use"}))
    if source is None:
        return None
    for text in (source, "" if for_tools is None else for_tools):
        if not isinstance(text, str):
            raise ValueError(
                f"chat_template in {where} is a {type(text).__name__}; "
                "it must be a str, or a list of names and templates"
            )
    notes = (f"of the chat templates, {unused:.200} is not used: no call names one",)
    return ChatTemplate(
        source, dict(_named_tokens(config)), for_tools, where, notes if unused else ()
    )


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
    """The control token that the template writes after the answer to a dialog; None without one.

    It is what follows the answer at the dialog's end, and also where the dialog's last message
    comes again: a template may end in <|assistant|> whoever spoke last, which opens the next text
    and ends none. Where it refuses one of the two, the other counts.
    """
    hidden = HiddenControls(special)
    answer = hidden.placeholder
    answered = [*messages, {"role": "assistant", "content": answer}]
    ends = []
    for dialog in (answered, [*answered, *messages[-1:]]):
        try:
            written = template.render(dialog, tools, opened=False, hide=hidden.hide)
        except ValueError:  # it may refuse: what the user has to know, `encode_with_template` says
            continue
        _, found, after = written.rpartition(answer)
        if found:
            ends.append(hidden.begins(after.lstrip()))
    return ends[0] if ends and len(set(ends)) == 1 else None


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
