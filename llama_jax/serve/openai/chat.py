"""/v1/chat/completions: dialogs answered, whole or in chunks."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from msgspec import UNSET

from llama_jax.generation.results import Delta
from llama_jax.serve.openai.answers import (
    Chat,
    ChatChoice,
    ChatChunk,
    ChatDelta,
    ChatLogprob,
    ChatLogprobs,
    ChatMessage,
    ChunkChoice,
    Reason,
    ToolCall,
)
from llama_jax.serve.openai.errors import bad, refused
from llama_jax.serve.openai.flow import Answering
from llama_jax.serve.openai.logprobs import Spelling, chat_form, prompt_form
from llama_jax.serve.openai.requests import ChatRequest
from llama_jax.serve.openai.served import Asked, Served, asked_of

Prompt = list[dict[str, Any]]


def asked_for(served: Served, request: ChatRequest) -> tuple[list[Prompt], Asked]:
    """The dialog as the model's format takes it, and what is asked of the engine for it."""
    served.check_name(request.model)
    if request.top_logprobs is not None and not request.logprobs:
        raise bad("top_logprobs needs logprobs=true; add it", "top_logprobs")
    messages = messages_of(served, request.messages)
    most = request.max_completion_tokens
    asked = asked_of(
        served,
        request,
        param="messages",
        logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        max_tokens=request.max_tokens if most is None else most,
        after=(),  # an answer stands alone
        turn_end=_turn_end(served, messages),
    )
    return [messages], asked


def messages_of(served: Served, given: Sequence[Mapping[str, Any]]) -> Prompt:
    """Messages in the words of chat templates, if they may fit into the context."""
    messages = [_message(one) for one in given]
    contents = [one.get("content") for one in messages]
    served.check_length(sum(len(text) for text in contents if isinstance(text, str)), "messages")
    return messages


def _turn_end(served: Served, messages: Prompt) -> int | None:
    """The id that ends an answer by the chat template, where the files do not say so."""
    ends = getattr(served.tokenizer, "turn_end", None)
    try:
        end = ends(messages) if ends is not None else None
    except ValueError as error:
        raise refused(error, "messages") from None
    return None if end is None or end[1] in served.tokenizer.stop_ids else end[1]


def _message(given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of calls are objects here, and not a text with their JSON."""
    said = {name: value for name, value in given.items() if value is not None}
    if said.get("role") == "developer":
        said["role"] = "system"
    if calls := said.get("tool_calls"):
        said["tool_calls"] = [_call(call) for call in calls] if isinstance(calls, list) else calls
    return said


def _call(call: Any) -> Any:
    match call:
        case {"function": {"arguments": str() as text} as function}:
            try:
                arguments = json.loads(text)
            except (ValueError, RecursionError):
                return call
            return {**call, "function": {**function, "arguments": arguments}}
    return call


class _Writer:
    """One answer as it grows. Host state."""

    def __init__(self, served: Served, request: ChatRequest, index: int) -> None:
        self._index, self._wanted, self._begun = index, request.logprobs, False
        self._spelling = Spelling(served.tokenizer)
        self._entries: list[ChatLogprob] = []

    def parts(self, delta: Delta) -> list[ChunkChoice]:
        """What a delta adds: the role first, then texts and calls, the reason of the end last."""
        found = []
        if not self._begun:
            self._begun = True
            found.append(self._part(ChatDelta(role="assistant", content="")))
        if self._wanted:
            self._entries += chat_form(self._spelling, delta.logprobs or [])
        if delta.text:
            found.append(self._part(ChatDelta(content=delta.text), logprobs=True))
        if delta.finish_reason is not None:
            reason: Reason = "stop" if delta.finish_reason == "stop" else "length"
            found.append(self._part(ChatDelta(), logprobs=bool(self._entries), reason=reason))
        return found

    def _part(
        self, delta: ChatDelta, *, logprobs: bool = False, reason: Reason | None = None
    ) -> ChunkChoice:
        entries = None
        if logprobs and self._wanted:
            entries, self._entries = ChatLogprobs(self._entries), []
        return ChunkChoice(self._index, delta, entries, reason)


async def _parts(
    served: Served, request: ChatRequest, answering: Answering
) -> AsyncIterator[list[ChunkChoice]]:
    writers = [_Writer(served, request, index) for index in range(answering.n)]
    async for index, delta in answering.deltas():
        yield writers[index].parts(delta)


async def whole(served: Served, request: ChatRequest, answering: Answering) -> Chat:
    """The answer in one piece."""
    found = [_Whole(request.logprobs) for _ in range(answering.n)]
    async for parts in _parts(served, request, answering):
        for part in parts:
            found[part.index].add(part)
    (stream,) = answering.streams
    scored: Any = UNSET
    if request.prompt_logprobs is not None and stream.prompt_logprobs is not None:
        scored = prompt_form(served.tokenizer, stream.prompt, stream.prompt_logprobs)
    return Chat(
        id=f"chatcmpl-{answering.id}",
        created=answering.created,
        model=served.name,
        choices=[one.choice(index) for index, one in enumerate(found)],
        usage=answering.usage,
        prompt_logprobs=scored,
    )


class _Whole:
    """The parts of one answer, put together."""

    def __init__(self, logprobs: bool) -> None:
        self._texts: list[str] = []
        self._calls: list[ToolCall] = []
        self._logprobs = ChatLogprobs([]) if logprobs else None
        self._reason: Reason = "length"

    def add(self, part: ChunkChoice) -> None:
        """Goes on with the next part."""
        if isinstance(part.delta.content, str):
            self._texts.append(part.delta.content)
        if self._logprobs is not None and part.logprobs is not None:
            self._logprobs.content += part.logprobs.content
        self._reason = part.finish_reason or self._reason

    def choice(self, index: int) -> ChatChoice:
        """The whole answer."""
        message = ChatMessage(content="".join(self._texts))
        return ChatChoice(index, message, self._logprobs, self._reason)


async def chunks(
    served: Served, request: ChatRequest, answering: Answering
) -> AsyncIterator[ChatChunk]:
    """The answer as it comes; at its end, where asked for, what it used."""
    counted = request.stream_options is not None and request.stream_options.include_usage
    usage = None if counted else UNSET
    async for parts in _parts(served, request, answering):
        for part in parts:
            yield _chunk(served, answering, [part], usage=usage)
    if counted:
        yield _chunk(served, answering, [], usage=answering.usage)


def _chunk(
    served: Served, answering: Answering, choices: list[ChunkChoice], *, usage: Any
) -> ChatChunk:
    return ChatChunk(
        id=f"chatcmpl-{answering.id}",
        created=answering.created,
        model=served.name,
        choices=choices,
        usage=usage,
    )
