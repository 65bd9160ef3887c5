"""Dialogs to ids in Llama 3's own format, with tools as Llama 3.1 and later know them.

The format is the one of Meta's llama-models: `prompt_format.md` of each release, "JSON based tool
calling", and `chat_format.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llama_jax.tokenizer.messages import checked_messages, checked_tools, listed, refuse_keys
from llama_jax.tokenizer.protocol import Answers, Message, Tokenizer, Tools

LLAMA3_ROLES = ("system", "user", "assistant", "tool", "ipython")
LLAMA3_ENDS = {"eot": "<|eot_id|>", "eom": "<|eom_id|>"}
_RESULTS = ("tool", "ipython")
_ENVIRONMENT = "Environment: ipython"
_BEFORE_TOOLS = (
    "Answer the user's question by making use of the following functions if needed.\n"
    "If none of the function can be used, please say so.\n"
    "Here is a list of functions in JSON format:\n"
)
_AFTER_TOOLS = "\nReturn function calls in JSON format."


def encode_llama3(
    tokenizer: Tokenizer,
    special: Mapping[str, int],
    messages: Sequence[Message],
    *,
    tools: Tools | None = None,
) -> list[int]:
    """Llama 3's messages after one bos, each between its header and its end, and an open header.

    The role "tool" is written "ipython", as Meta writes it. Contents are not stripped. Llama 3.1
    knows three keys more, for the assistant alone: `"python_tag": True` writes <|python_tag|>
    before the content, a call of a built-in tool; `"end": "eom"` ends it with <|eom_id|>, as the
    assistant goes on once it has the tool's result; and `"tool_calls"` writes calls of functions as
    JSON, with both. With `tools` the system message begins with "Environment: ipython", and a
    user's message before the first lists the tools as JSON.
    """
    pieces = _llama3_pieces(tokenizer, special, _with_tools(messages, tools))
    header = _llama3_header(tokenizer, special, "assistant")
    return [id for piece, _ in pieces for id in piece] + header


def encode_llama3_answers(
    tokenizer: Tokenizer, special: Mapping[str, int], messages: Sequence[Message]
) -> Answers:
    """Llama 3's messages; the assistant wrote its contents and what ends them, not its headers."""
    ids: list[int] = []
    writers: list[int] = []
    checked = checked_messages(messages, LLAMA3_ROLES)
    for piece, writer in _llama3_pieces(tokenizer, special, checked):
        ids += piece
        writers += [writer] * len(piece)
    return ids, writers


def llama3_keys(
    special: Mapping[str, int], tokens: Sequence[int], end: int | None
) -> dict[str, Any]:
    """The keys with which an answer is written again as the model wrote it.

    The control tokens <|python_tag|> and <|eom_id|> are no part of its content.
    """
    keys: dict[str, Any] = {}
    if tokens and tokens[0] == special["<|python_tag|>"]:
        keys["python_tag"] = True
    if end == special[LLAMA3_ENDS["eom"]]:
        keys["end"] = "eom"
    return keys


def _with_tools(messages: Sequence[Message], tools: Tools | None) -> list[dict[str, Any]]:
    """The messages, with what tells the model of tools among them."""
    checked, given = checked_messages(messages, LLAMA3_ROLES), checked_tools(tools)
    for index, message in enumerate(checked):  # an error names its place among the user's own
        _llama3_marks(index, message)
        _calls(index, message)
    if given is None:
        return checked
    said, rest = _ENVIRONMENT, checked
    if checked[0]["role"] == "system":
        said, rest = f"{said}\n\n{checked[0]['content']}", checked[1:]
    try:
        described = "".join(f"{json.dumps(t, indent=4, ensure_ascii=False)}\n" for t in given)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"tools= holds what is no JSON: {error}") from None
    told = f"{_BEFORE_TOOLS}{described}{_AFTER_TOOLS}"
    return [{"role": "system", "content": said}, {"role": "user", "content": told}, *rest]


def _llama3_pieces(
    tokenizer: Tokenizer, special: Mapping[str, int], messages: Sequence[Message]
) -> Iterator[tuple[list[int], int]]:
    """Runs of tokens, each with the index of the assistant's message that it is of, or -1."""
    yield [tokenizer.bos_id], -1
    for index, message in enumerate(messages):
        tagged, end = _llama3_marks(index, message)
        yield _llama3_header(tokenizer, special, message["role"]), -1
        tag = [special["<|python_tag|>"]] if tagged else []
        content = message.get("content", "") + _calls(index, message)
        text = tokenizer.encode(content, bos=False, eos=False)
        yield [*tag, *text, special[end]], index if message["role"] == "assistant" else -1


def _llama3_header(tokenizer: Tokenizer, special: Mapping[str, int], role: str) -> list[int]:
    name, blank = (
        tokenizer.encode(text, bos=False, eos=False)
        for text in ("ipython" if role == "tool" else role, "\n\n")
    )
    return [special["<|start_header_id|>"], *name, special["<|end_header_id|>"], *blank]


def _llama3_marks(index: int, message: Message) -> tuple[bool, str]:
    """Whether <|python_tag|> begins a message, and the token that ends it."""
    of_results = message["role"] in _RESULTS  # which call it answers is not written
    more = ("tool_call_id", "name") if of_results else ("python_tag", "end", "tool_calls")
    refuse_keys(index, message, ("role", "content", *more))
    calls = bool(message.get("tool_calls"))
    tagged = message.get("python_tag", calls)
    end = message.get("end", "eom" if calls else "eot")
    if not isinstance(tagged, bool):
        raise ValueError(f"message {index} has python_tag={tagged!r}; it is True or False")
    if not isinstance(end, str) or end not in LLAMA3_ENDS:
        raise ValueError(f"message {index} has end={end!r}; it is one of {listed(LLAMA3_ENDS)}")
    if message["role"] != "assistant" and (tagged or end != "eot"):
        key = "tool_calls" if calls else "python_tag" if tagged else "end"
        raise ValueError(
            f"message {index} has role {message['role']!r} and {key}={message[key]!r}; only the "
            "assistant calls tools, so leave it out"
        )
    return tagged, LLAMA3_ENDS[end]


def _calls(index: int, message: Message) -> str:
    """The calls of functions in a message, as the model writes them; "" without any.

    {"function": {"name": "f", "arguments": {"a": 1}}} is
    {"type": "function", "name": "f", "parameters": {"a": 1}}.
    """
    calls = message.get("tool_calls") or []
    try:
        return "; ".join(map(_call, calls))
    except (TypeError, ValueError, KeyError, AttributeError, RecursionError):
        raise ValueError(
            f"message {index} has tool_calls={calls!r:.80}; it is a list of "
            '{"function": {"name": ..., "arguments": {...}}}'
        ) from None


def _call(call: Mapping[str, Any]) -> str:
    function = call.get("function", call)
    name, arguments = function["name"], function.get("arguments") or {}
    if isinstance(arguments, str):  # as OpenAI's protocol has them
        arguments = json.loads(arguments)
    if not (isinstance(name, str) and isinstance(arguments, dict)):
        raise TypeError
    written = {"type": "function", "name": name, "parameters": arguments}
    return json.dumps(written, ensure_ascii=False)
