"""Messages and tools as every format of a dialog takes them, checked where they come in."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from llama_jax.tokenizer.protocol import Message, Tools, check_text

_EXAMPLE = '{"role": "user", "content": "Hello"}'
_TOOL = '{"type": "function", "function": {"name": ..., "parameters": ...}}'


def checked_messages(messages: Sequence[Message], roles: Collection[str]) -> list[dict[str, Any]]:
    """The messages, each with one of `roles` and a text as its content; ValueError otherwise.

    A key whose value is None is left out. A content of text parts becomes their text, joined:
    [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}] is "ab". Calls of tools may
    stand in the content's place, in the formats that know the key "tool_calls".
    """
    if isinstance(messages, str | bytes) or not isinstance(messages, Sequence):
        raise ValueError(f"messages={messages!r:.60} is no list of messages; pass [{_EXAMPLE}]")
    if not messages:
        raise ValueError(f"messages=[] is no dialog; pass at least one message, [{_EXAMPLE}]")
    return [_checked(index, message, roles) for index, message in enumerate(messages)]


def checked_tools(tools: Tools | None) -> list[Mapping[str, Any]] | None:
    """The descriptions of tools; None where there are none, ValueError where one is no dict."""
    if tools is None:
        return None
    if isinstance(tools, str | bytes | Mapping) or not isinstance(tools, Sequence):
        raise ValueError(f"tools={tools!r:.60} is no list of tools; pass [{_TOOL}]")
    for index, tool in enumerate(tools):
        if not isinstance(tool, Mapping):
            raise ValueError(f"tool {index} is {tool!r:.60}; describe it by a dict, {_TOOL}")
    return list(tools) or None


def refuse_keys(index: int, message: Message, known: Collection[str]) -> None:
    """Raises ValueError if a message has a key that its format does not write."""
    if unknown := [key for key in message if key not in known]:
        raise ValueError(
            f"message {index} has {unknown[0]!r}, which this model's format does not write; it "
            f"knows {listed(known)}, so leave it out or write it into the content"
        )


def refuse_tools(tools: Tools | None, name: str) -> None:
    """Raises ValueError if there are tools, which the format `name` does not write."""
    if checked_tools(tools) is not None:
        raise ValueError(
            f"{name} has no place for tools=; describe them in the system message, as the "
            "model's card says"
        )


def rebuilt(value: Any, where: str, hide: Callable[[str], str]) -> Any:
    """A message or tool in Python's own types, which lend a template no other methods.

    Each text in it is as `hide` returns it.
    """
    try:
        return _rebuilt(value, where, hide)
    except RecursionError:
        raise ValueError(
            f"{where} holds lists or dicts nested too deeply, or in themselves; "
            "a chat template takes what JSON knows"
        ) from None


def listed(names: Collection[object]) -> str:
    """The names, quoted and joined."""
    return ", ".join(map(repr, names)) or "nothing"


def _checked(index: int, message: Any, roles: Collection[str]) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise ValueError(f"message {index} is {message!r:.60}; a message is a dict, {_EXAMPLE}")
    said = {key: value for key, value in message.items() if value is not None}
    if "content" in said:
        said["content"] = _text_of(index, said["content"])
    calls = said.get("tool_calls") and "content" not in said
    for key in ("role",) if calls else ("role", "content"):
        if key not in said:
            raise ValueError(
                f"message {index} has no {key!r}, only {listed(said)}; it needs both: {_EXAMPLE}"
            )
        try:
            check_text(said[key])
        except ValueError as error:
            raise ValueError(f"message {index} has a broken {key!r}: {error}") from None
    if said["role"] not in roles:
        raise ValueError(f"message {index} has role {said['role']!r}; it is one of {listed(roles)}")
    return said


def _text_of(index: int, content: Any) -> Any:
    """The text of a content in parts; any other content as it is."""
    if not isinstance(content, list | tuple):
        return content
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        text = part.get("text") if kind == "text" else None
        if not isinstance(text, str):
            said = "a part of type 'text' without a 'text'" if kind == "text" else f"a {kind!r}"
            raise ValueError(
                f"message {index} has {said} among the parts of its content; the model reads text "
                'alone, so pass parts like {"type": "text", "text": "Hello"}'
            )
        texts.append(text)
    return "".join(texts)


def _rebuilt(value: Any, where: str, hide: Callable[[str], str]) -> Any:
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
