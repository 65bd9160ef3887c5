"""/v1/chat/completions: dialogs answered, whole or in chunks."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import UNSET

from llama_jax.serve.openai.answers import Chat, ChatChunk, ChunkChoice
from llama_jax.serve.openai.chat_parts import Parts, Whole
from llama_jax.serve.openai.errors import bad, refused
from llama_jax.serve.openai.flow import Answering
from llama_jax.serve.openai.logprobs import Spelling, prompt_form
from llama_jax.serve.openai.requests import ChatRequest
from llama_jax.serve.openai.served import Asked, Served, asked_of
from llama_jax.serve.tools import parser_of, schema_for
from llama_jax.tokenizer import Tools
from llama_jax.tokenizer.chat_template import ROLES
from llama_jax.tokenizer.messages import checked_messages

Messages = list[dict[str, Any]]


def asked_for(served: Served, request: ChatRequest) -> tuple[list[Any], Asked]:
    """The dialog as the engine takes it, and what is asked of the engine for it."""
    served.check_name(request.model)
    if request.top_logprobs is not None and not request.logprobs:
        raise bad("top_logprobs needs logprobs=true; add it", "top_logprobs")
    messages = messages_of(served, request.messages)
    tools = tools_of(request)
    dialog, start = _dialog_and_start(request, messages)
    prompt: Any = dialog
    try:
        end = _turn_end(served, dialog, tools)
        if tools is not None or start is not None:
            prompt = served.tokenizer.encode_dialog(dialog, tools=tools)
        if start is not None:  # by the ids that the model itself would have written
            prompt = [*prompt, *served.tokenizer.encode(start, bos=False, eos=False)]
    except ValueError as error:
        raise refused(error, "messages" if tools is None else "tools") from None
    most = request.max_completion_tokens
    asked = asked_of(
        served,
        request,
        param="messages",
        logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        max_tokens=request.max_tokens if most is None else most,
        after=() if start is None else prompt,  # a whole answer stands alone
        turn_end=end,
        schema=_schema(request),
    )
    return [prompt], asked


def _dialog_and_start(request: ChatRequest, messages: Messages) -> tuple[Messages, str | None]:
    """The dialog to be answered, and how the answer starts: as the last message, or freely.

    A 400 where the request does not say clearly which.
    """
    begins, name = request.add_generation_prompt, "continue_final_message"
    if not request.continue_final_message:
        if begins is False:
            said = "add_generation_prompt=false asks for no answer; leave it out, or add "
            raise bad(f"{said}{name}=true", "add_generation_prompt", "invalid_value")
        return messages, None
    if begins:
        said = f"{name}=true goes on with the last message, and add_generation_prompt=true begins "
        raise bad(said + "another; send one of them", name, "invalid_value")
    try:
        *dialog, last = checked_messages(messages, ROLES)
    except ValueError as error:
        raise refused(error, "messages") from None
    if last["role"] != "assistant" or not last.get("content"):
        said = f"{name}=true goes on with the assistant's last message, and the last here is not "
        raise bad(said + "the assistant's or has no text", name, "invalid_value")
    return dialog, last["content"]


def tools_of(request: ChatRequest) -> list[dict[str, Any]] | None:
    """The tools that the model is told of, as templates take them."""
    if request.tool_choice == "none" or not request.tools:
        return None
    asked = map(msgspec.to_builtins, request.tools)
    found = [{"type": tool["type"], **tool} for tool in asked]  # in the order that models know
    for tool in found:
        given = tool["function"].items()
        tool["function"] = {name: value for name, value in given if value is not None}
    return found


def _schema(request: ChatRequest) -> dict[str, Any] | None:
    """The schema of the call that `tool_choice` demands."""
    try:
        tools = tools_of(request) or []
        return schema_for(tools, msgspec.to_builtins(request.tool_choice))
    except ValueError as error:
        raise bad(str(error), "tool_choice", "invalid_value") from None


def messages_of(served: Served, given: Sequence[Mapping[str, Any]]) -> Messages:
    """Messages in the words of chat templates, if they may fit into the context.

    A 400 where the model has no format for dialogs.
    """
    served.check_chats()
    messages = [_message(one) for one in given]
    served.check_length(sum(_characters(one.get("content")) for one in messages), "messages")
    return messages


def _characters(content: Any) -> int:
    """How many characters a content has: a text, or a list of parts."""
    if isinstance(content, list):
        return sum(_characters(part.get("text")) for part in content if isinstance(part, dict))
    return len(content) if isinstance(content, str) else 0


def _turn_end(served: Served, messages: Messages, tools: Tools | None) -> int | None:
    """The id that ends an answer by the chat template, where the files do not say so."""
    ends = getattr(served.tokenizer, "turn_end", None)
    end = ends(messages, tools=tools) if ends is not None else None
    return None if end is None or end[1] in served.tokenizer.stop_ids else end[1]


def _message(given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of calls are objects here, and not a text with their JSON.

    A field that is null or an empty list says nothing: OpenAI's answers have such fields, and
    clients send an answer back as it came.
    """
    said = {
        name: value
        for name, value in given.items()
        if value is not None and (value != [] or name == "content")
    }
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


async def _parts(
    served: Served, request: ChatRequest, answering: Answering
) -> AsyncIterator[list[ChunkChoice]]:
    tools = tools_of(request)
    parsers = [parser_of(served.tokenizer, tools) for _ in range(answering.n)]
    each = [
        Parts(index, Spelling(served.tokenizer), parser, logprobs=request.logprobs)
        for index, parser in enumerate(parsers)
    ]
    async for index, delta in answering.deltas():
        yield each[index].of(delta)


async def whole(served: Served, request: ChatRequest, answering: Answering) -> Chat:
    """The answer in one piece."""
    found = [Whole(request.logprobs) for _ in range(answering.n)]
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


async def chunks(
    served: Served, request: ChatRequest, answering: Answering
) -> AsyncIterator[ChatChunk]:
    """The answer as it comes; at its end, where asked for, what it used."""
    counted = request.counts_usage
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
