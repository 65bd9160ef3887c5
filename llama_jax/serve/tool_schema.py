"""The JSON schema of a call: an answer under it is one call of one of the tools."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llama_jax.tokenizer import Tools


def names_of(tools: Tools) -> list[str]:
    """The names of tools, in OpenAI's form or as bare functions."""
    return [_function(tool)["name"] for tool in tools]


def schema_for(tools: Tools, choice: Any) -> dict[str, Any] | None:
    """The JSON schema of an answer that is one call, as `tool_choice` wants it; None where it is
    free.

    `choice` is OpenAI's: "none", "auto" or None, "required", or a function by name. ValueError
    where it names no tool.
    """
    if choice in (None, "none", "auto"):
        return None
    functions = [_function(tool) for tool in tools]
    if choice != "required":
        name = _function(choice).get("name")
        functions = [one for one in functions if one["name"] == name]
        if not functions:
            listed = ", ".join(map(repr, names_of(tools))) or "none"
            raise ValueError(f"tool_choice names {name!r:.80}; the tools are {listed}")
    if not functions:
        raise ValueError("tool_choice='required' asks for a call, and there are no tools")
    calls = [_call_schema(n, one["name"]) for n, one in enumerate(functions)]
    return {
        **(calls[0] if len(calls) == 1 else {"anyOf": calls}),
        "$defs": {f"tool{n}": _parameters(n, one) for n, one in enumerate(functions)},
    }


def _function(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    return tool.get("function", tool)


def _call_schema(n: int, name: str) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"name": {"const": name}, "parameters": {"$ref": f"#/$defs/tool{n}"}},
        "required": ["name", "parameters"],
        "additionalProperties": False,
    }


def _parameters(n: int, function: Mapping[str, Any]) -> Any:
    """A tool's parameters as a part of the schema; those that it does not name are refused."""
    given = dict(function.get("parameters") or {"properties": {}})
    moved = _moved(given, f"#/$defs/tool{n}")
    return {"type": "object", "additionalProperties": False, **moved}


def _moved(schema: Any, place: str) -> Any:
    """A schema whose references to itself lead to its new place."""
    if isinstance(schema, Mapping):
        return {
            key: place + value[1:]
            if key == "$ref" and isinstance(value, str) and value.startswith("#")
            else _moved(value, place)
            for key, value in schema.items()
        }
    if isinstance(schema, list | tuple):
        return [_moved(one, place) for one in schema]
    return schema
