"""One answer to a dialog as it grows: its text, its calls of tools, and their log-probabilities."""

from __future__ import annotations

from llama_jax.generation.results import Delta
from llama_jax.serve.openai.answers import (
    CalledFunction,
    ChatChoice,
    ChatDelta,
    ChatLogprob,
    ChatLogprobs,
    ChatMessage,
    ChunkChoice,
    Reason,
    ToolCall,
)
from llama_jax.serve.openai.logprobs import Spelling, chat_form
from llama_jax.serve.tools import ArgumentsPiece, CallBegun, Event, Text, ToolParser


class Parts:
    """What each delta adds to one answer. Host state."""

    def __init__(
        self, index: int, spelling: Spelling, parser: ToolParser | None, *, logprobs: bool
    ) -> None:
        self._index, self._spelling, self._parser = index, spelling, parser
        self._wanted, self._begun = logprobs, False
        self._entries: list[ChatLogprob] = []

    def of(self, delta: Delta) -> list[ChunkChoice]:
        """The role first, then texts and calls, and the reason of the end last."""
        if self._wanted:
            self._entries += chat_form(self._spelling, delta.logprobs or [])
        ended = delta.finish_reason is not None
        added = [part for event in self._events(delta, ended) if (part := _delta(event))]
        found = [self._part(one, logprobs=True) for one in added]
        if not self._begun:
            self._begun = True
            found.insert(0, self._part(ChatDelta(role="assistant", content="")))
        if ended:
            reason = self._reason(delta)
            found.append(self._part(ChatDelta(), logprobs=bool(self._entries), reason=reason))
        return found

    def _events(self, delta: Delta, ended: bool) -> list[Event]:
        if self._parser is None:
            return [Text(delta.text)] if delta.text else []
        found = self._parser.push(delta.text, delta.tokens)
        return [*found, *self._parser.finish()] if ended else found

    def _reason(self, delta: Delta) -> Reason:
        if delta.finish_reason != "stop":
            return "length"
        return "tool_calls" if self._parser is not None and self._parser.calls else "stop"

    def _part(
        self, delta: ChatDelta, *, logprobs: bool = False, reason: Reason | None = None
    ) -> ChunkChoice:
        entries = None
        if logprobs and self._wanted:
            entries, self._entries = ChatLogprobs(self._entries), []
        return ChunkChoice(self._index, delta, entries, reason)


def _delta(event: Event) -> ChatDelta | None:
    match event:
        case Text(text):
            return ChatDelta(content=text)
        case CallBegun(index, id, name):
            function = CalledFunction(name=name, arguments="")
            begun = ToolCall(index=index, id=id, type="function", function=function)
            return ChatDelta(tool_calls=[begun])
        case ArgumentsPiece(index, text):
            more = ToolCall(index=index, function=CalledFunction(arguments=text))
            return ChatDelta(tool_calls=[more])
    return None


class Whole:
    """The parts of one answer, put together. Host state."""

    def __init__(self, logprobs: bool) -> None:
        self._texts: list[str] = []
        self._calls: list[tuple[ToolCall, list[str]]] = []
        self._logprobs = ChatLogprobs([]) if logprobs else None
        self._reason: Reason = "length"

    def add(self, part: ChunkChoice) -> None:
        """Goes on with the next part."""
        if isinstance(part.delta.content, str):
            self._texts.append(part.delta.content)
        if isinstance(part.delta.tool_calls, list):
            self._add_call(part.delta.tool_calls[0])
        if self._logprobs is not None and part.logprobs is not None:
            self._logprobs.content += part.logprobs.content
        self._reason = part.finish_reason or self._reason

    def _add_call(self, call: ToolCall) -> None:
        if isinstance(call.id, str):
            self._calls.append((call, []))
        self._calls[-1][1].append(str(call.function.arguments))

    def choice(self, index: int) -> ChatChoice:
        """The whole answer. Its content is null where it is nothing but calls."""
        text = "".join(self._texts)
        message = ChatMessage(content=text if text or not self._calls else None)
        if self._calls:
            message.tool_calls = [_whole_call(call, parts) for call, parts in self._calls]
        return ChatChoice(index, message, self._logprobs, self._reason)


def _whole_call(call: ToolCall, arguments: list[str]) -> ToolCall:
    function = CalledFunction(name=call.function.name, arguments="".join(arguments))
    return ToolCall(id=call.id, type="function", function=function)
