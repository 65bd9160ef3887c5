"""Calls of tools in a model's answer, found as it comes, and the schema that asks for one.

Llama 3 and 4 write calls as text, of three kinds, which this reads all alike:

    {"name": "f", "parameters": {"a": 1}}; {"name": "g", "parameters": {}}
    brave_search.call(query="llamas")
    [f(a=1), g()]

Llama 3.1 puts the control token <|python_tag|> before a call, or does not. A control token is no
part of a text, so a parser is given the tokens too, and finds the tag's place in the text by them.
"""

from __future__ import annotations

import dataclasses
import re
import secrets
from collections.abc import Callable, Sequence

from llama_jax.serve.tool_schema import names_of, schema_for
from llama_jax.serve.tool_tag import MARK, PYTHON_TAG, Tags
from llama_jax.serve.tool_texts import (
    Call,
    Nesting,
    begun_json,
    is_other_json,
    json_call,
    python_calls,
)
from llama_jax.tokenizer import Tokenizer, Tools

__all__ = [
    "ArgumentsPiece",
    "CallBegun",
    "CallEnded",
    "Event",
    "Text",
    "ToolParser",
    "parser_of",
    "schema_for",
]


@dataclasses.dataclass(frozen=True)
class Text:
    """Text that is no part of a call."""

    text: str


@dataclasses.dataclass(frozen=True)
class CallBegun:
    """A call of a tool that was given. Calls count from 0."""

    index: int
    id: str
    name: str


@dataclasses.dataclass(frozen=True)
class ArgumentsPiece:
    """What goes on with a call's arguments, which together are JSON as the model wrote it."""

    index: int
    text: str


@dataclasses.dataclass(frozen=True)
class CallEnded:
    """A call is whole; one that `max_new_tokens` cut never is."""

    index: int


Event = Text | CallBegun | ArgumentsPiece | CallEnded


def parser_of(tokenizer: Tokenizer | None, tools: Tools | None) -> ToolParser | None:
    """A parser for one answer of a model that was told of these tools; None without tools."""
    names = names_of(tools or ())
    return ToolParser(names, tokenizer) if names else None


class ToolParser:
    """Finds the calls in one answer. Host state.

    Text that may become a call waits. It comes out as text, whole, where it becomes none: where a
    tool has another name, say. Arguments of a JSON call come out as they are written, from the
    moment its name is certain; calls of Python's kind when they are whole. A call stands at the
    answer's beginning, after the tag or after another call, and never inside a text.
    """

    def __init__(self, names: Sequence[str], tokenizer: Tokenizer | None = None) -> None:
        self._names = tuple(names)
        self._starts = [f"[{name}(" for name in names] + [f"{name}.call(" for name in names]
        self._begun_json = begun_json(self._names)
        tag = None if tokenizer is None else tokenizer.special.get(PYTHON_TAG)
        self._tags = None if tokenizer is None or tag is None else Tags(tokenizer, tag)
        self.calls = 0
        """Calls that began so far."""
        self._held = ""
        self._step: Callable[[], bool] = self._between
        self._events: list[Event] = []
        self._nesting, self._seen = Nesting(), 0

    def push(self, text: str, tokens: Sequence[int] = ()) -> list[Event]:
        """What a piece of the answer makes certain; `tokens` are those that it came with."""
        marked = text if self._tags is None else self._tags.marked(text, tokens)
        for part in re.split(f"({MARK})", marked):
            if part == MARK:
                self._meet_tag()
            self._held += part.replace(MARK, "")
            while self._held and self._step():
                pass
        return self._taken()

    def finish(self) -> list[Event]:
        """What waited, now that nothing follows."""
        nothing = self._step == self._between and self.calls and not self._held.strip(" \n;,")
        if self._step not in (self._arguments, self._tail) and not nothing:
            self._say(self._held)
        self._held = ""
        return self._taken()

    def _taken(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def _say(self, text: str) -> None:
        if text:
            self._events.append(Text(text))

    def _meet_tag(self) -> None:
        """After a tag a call may begin; one that has begun goes on."""
        if self._step in (self._json, self._python):
            self._say(self._held)
            self._held = ""
        if self._step not in (self._arguments, self._tail):
            self._step = self._between

    # Steps: each looks at what is held, and says whether there is another step to take at once.

    def _between(self) -> bool:
        """Before a call, or before a text: at the beginning, after a tag, after a call."""
        lead = re.match(r"\s*[;,]?\s*" if self.calls else r"\s*", self._held)
        start = lead.end() if lead else 0
        rest = re.sub(r"^\[\s+", "[", self._held[start:])
        if not rest:
            return False
        self._seen = start
        if rest[0] == "{":
            self._nesting, self._step = Nesting(), self._json
            return True
        if any(rest.startswith(begun) for begun in self._starts):
            self._nesting, self._step = Nesting("'\""), self._python
            return True
        if any(begun.startswith(rest) for begun in self._starts):
            return False
        self._step = self._text
        return True

    def _text(self) -> bool:
        self._say(self._held)
        self._held = ""
        return False

    def _json(self) -> bool:
        """Inside of an object that may be a call."""
        start = self._held.index("{")
        if begun := self._begun_json.match(self._held, start):
            self._begin(begun["name"])
            self._held = self._held[begun.end() :]
            self._nesting, self._step = Nesting(), self._arguments
            return True
        if is_other_json(self._held[start:], self._names):
            self._step = self._text
            return True
        return self._whole(json_call)

    def _python(self) -> bool:
        return self._whole(python_calls)

    def _whole(self, read: Callable[[str, Sequence[str]], list[Call] | None]) -> bool:
        """Reads calls once the bracket that they began with is closed."""
        end = self._nesting.end_in(self._held[self._seen :])
        if end is None:
            self._seen = len(self._held)
            return False
        end += self._seen
        calls = read(re.sub(r"^[\s;,]+", "", self._held[:end]), self._names)
        if calls is None:
            self._step = self._text
            return True
        for name, arguments in calls:
            self._begin(name)
            self._argue(arguments)
            self._events.append(CallEnded(self.calls - 1))
        self._held, self._step = self._held[end:], self._between
        return True

    def _arguments(self) -> bool:
        end = self._nesting.end_in(self._held)
        self._argue(self._held[:end])
        self._held = "" if end is None else self._held[end:]
        if end is None:
            return False
        self._events.append(CallEnded(self.calls - 1))
        self._nesting, self._step = Nesting(), self._tail
        self._nesting.end_in("{")  # the call's own bracket is open still
        return True

    def _tail(self) -> bool:
        """After a call's arguments, up to its own bracket."""
        end = self._nesting.end_in(self._held)
        self._held = "" if end is None else self._held[end:]
        if end is None:
            return False
        self._step = self._between
        return True

    def _begin(self, name: str) -> None:
        self._events.append(CallBegun(self.calls, f"call_{secrets.token_hex(12)}", name))
        self.calls += 1

    def _argue(self, text: str) -> None:
        if text:
            self._events.append(ArgumentsPiece(self.calls - 1, text))
