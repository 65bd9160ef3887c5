"""What a tokenizer knows of dialogs, whatever kind its file is: a chat template, or a format."""

from __future__ import annotations

import abc
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from llama_jax.tokenizer.added import check_controls, unknown_controls
from llama_jax.tokenizer.beside import Stated
from llama_jax.tokenizer.chat_template import ROLES, ChatTemplate, encode_with_template, turn_end
from llama_jax.tokenizer.messages import checked_messages
from llama_jax.tokenizer.protocol import Answers, Message, Tokenizer, Tools
from llama_jax.tokenizer.template_answers import (
    Located,
    encode_answers_by_difference,
    encode_marked_answers,
)


class WithTemplate(Tokenizer):
    """A tokenizer that writes a dialog by its folder's chat template, or in a format of its own.

    A kind of tokenizer says how it encodes, with and without control tokens, and which format it
    has where there is no template.
    """

    special: Mapping[str, int]
    """The id of each control token, by name. No text encodes to them."""
    notes: tuple[str, ...]
    """What the files say and what is not followed."""
    _file: bytes
    _template: ChatTemplate | None
    _stated: Stated

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as the files that it was made of: what the libraries pickle loses settings."""
        return _made, (type(self), self._file, self._stated, self._template, self.notes)

    @property
    def dialog_format(self) -> str | None:
        """The name of Meta's format that dialogs have; None where a template writes them."""
        return self.own_format if self._template is None else None

    @property
    def has_template(self) -> bool:
        """Whether a chat template came with the tokenizer's file."""
        return self._template is not None

    def encode_dialog(
        self, messages: Sequence[Message], *, tools: Tools | None = None
    ) -> list[int]:
        if self._template is None:
            return self._encode_own_dialog(messages, tools)
        return self._write(self._template, messages, tools)

    def encode_answers(self, messages: Sequence[Message]) -> Answers:
        template = self._template
        if template is None:
            return self._encode_own_answers(messages)
        checked = checked_messages(messages, ROLES)
        if template.marks_answers:
            check_controls(template.source, self._stated.controls, self._id_of)
            return encode_marked_answers(
                template, checked, locate=self._locate, special=self.special
            )
        asked = list(itertools.takewhile(lambda said: said["role"] != "assistant", checked))
        end = self.turn_end(asked) if asked else None
        return encode_answers_by_difference(
            checked,
            lambda said, opened: self._write(template, said, opened=opened),
            self.stop_ids if end is None else (*self.stop_ids, end[1]),
        )

    def template_notes(self) -> tuple[str, ...]:
        """What is to be said of the chat template: what it spells and nobody reads as a token."""
        if self._template is None:
            return ()
        sources = f"{self._template.source}{self._template.tool_source or ''}"
        if not (unknown := unknown_controls(sources, self._id_of)):
            return self._template.notes
        told = (
            f"the chat template writes {', '.join(unknown)[:200]}, no token of this tokenizer, so "
            "the model reads the characters; if it was trained on tokens, a file that states their "
            "ids is missing (added_tokens.json, tokenizer_config.json)"
        )
        return (*self._template.notes, told)

    def check_dialogs(self) -> None:
        """ValueError where no dialog can be written.

        A template is compiled, and asked about no dialog: it may insist on a system message.
        """
        if self._template is None:
            self._encode_own_dialog([{"role": "user", "content": "Hello"}], None)
        else:
            self._template.check()
            check_controls(self._template.source, self._stated.controls, self._id_of)

    def turn_end(
        self, messages: Sequence[Message], *, tools: Tools | None = None
    ) -> tuple[str, int] | None:
        """The control token that ends an answer, by the chat template, and its id."""
        if self._template is None:
            return None
        name = turn_end(self._template, messages, tools=tools, special=self.special)
        return None if name is None else (name, self.special[name])

    def answer_keys(self, tokens: Sequence[int], end: int | None) -> dict[str, Any]:
        """What a message needs beside its content, to be written as the model wrote these tokens.

        `end` is the stop token that ended them. A template decides for itself.
        """
        return {}

    def _write(
        self,
        template: ChatTemplate,
        messages: Sequence[Message],
        tools: Tools | None = None,
        opened: bool = True,
    ) -> list[int]:
        check_controls(template.source_for(tools), self._stated.controls, self._id_of)
        return encode_with_template(
            template,
            messages,
            tools=tools,
            encode=self.encode_text,
            special=self.special,
            opened=opened,
        )

    @property
    @abc.abstractmethod
    def own_format(self) -> str | None:
        """The name of Meta's format for dialogs without a template; None where there is none."""

    @abc.abstractmethod
    def encode_text(self, text: str, controls: bool = False, begins: bool = True) -> list[int]:
        """The ids of a text: whether its control tokens are found; whether a text begins here."""

    @abc.abstractmethod
    def _locate(self, text: str, controls: bool, begins: bool) -> list[Located]:
        """What `encode_text` returns, each id with the characters of its token."""

    @abc.abstractmethod
    def _id_of(self, text: str) -> int | None:
        """The id of the token that is spelled `text`."""

    @abc.abstractmethod
    def _encode_own_dialog(self, messages: Sequence[Message], tools: Tools | None) -> list[int]:
        """`encode_dialog` in the tokenizer's own format."""

    @abc.abstractmethod
    def _encode_own_answers(self, messages: Sequence[Message]) -> Answers:
        """`encode_answers` in the tokenizer's own format."""


def _made(
    kind: Any, file: bytes, stated: Stated, template: ChatTemplate | None, notes: tuple[str, ...]
) -> WithTemplate:
    tokenizer = kind(file, stated, template)
    tokenizer.notes = notes
    return tokenizer
