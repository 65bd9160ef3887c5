"""Complete calls of tools as Llama 3 and 4 write them, to names and arguments."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Collection, Sequence
from typing import Any

Call = tuple[str, str]
"""A tool's name, and its arguments as JSON."""

_CONSTANTS = {"true": True, "false": False, "null": None}
_ARGUMENTS = ("parameters", "arguments")
KEYS = ("name", "type", "function", "id", *_ARGUMENTS)
"""With one of these a JSON object that is a call begins."""


class Nesting:
    """Where brackets that a text opened are closed; those inside its strings do not count."""

    def __init__(self, quotes: str = '"') -> None:
        self._quotes, self._quote, self._escaped, self._depth = quotes, "", False, 0

    def end_in(self, text: str) -> int | None:
        """The place after the bracket that closes the first one; None where it stays open.

        The next text goes on where this one ended.
        """
        for place, letter in enumerate(text, start=1):
            if self._escaped:
                self._escaped = False
            elif self._quote:
                self._escaped = letter == "\\"
                if letter == self._quote:
                    self._quote = ""
            elif letter in self._quotes:
                self._quote = letter
            elif letter in "([{":
                self._depth += 1
            elif letter in ")]}":
                self._depth -= 1
                if self._depth <= 0:
                    return place
        return None


def json_call(text: str, names: Collection[str]) -> list[Call] | None:
    """The call of a JSON object: `{"name": "f", "parameters": {"a": 1}}`."""
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if isinstance(said, dict) and isinstance(said.get("function"), dict):
        said = said["function"]
    name = said.get("name", said.get("function")) if isinstance(said, dict) else None
    if not isinstance(name, str) or name not in names:
        return None
    given: Any = next((said[key] for key in _ARGUMENTS if said.get(key) is not None), {})
    if not isinstance(given, dict):
        return None
    return [(name, json.dumps(given, ensure_ascii=False))]


def python_calls(text: str, names: Collection[str]) -> list[Call] | None:
    """The calls of Python's kind: `[f(a=1), g()]`, or `f.call(a=1)` of a built-in tool."""
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    nodes: Sequence[ast.expr] = tree.elts if isinstance(tree, ast.List) else [tree]
    found = [_python_call(node, names) for node in nodes]
    calls = [call for call in found if call is not None]
    return calls if calls and len(calls) == len(found) else None


def _python_call(node: ast.expr, names: Collection[str]) -> Call | None:
    if not isinstance(node, ast.Call) or node.args:
        return None
    name = ast.unparse(node.func)
    if name not in names and name.endswith(".call"):
        name = name.removesuffix(".call")
    if name not in names or any(one.arg is None for one in node.keywords):
        return None
    try:
        given = {one.arg: _value(one.value) for one in node.keywords}
        return name, json.dumps(given, ensure_ascii=False, allow_nan=False)
    except (ValueError, TypeError, RecursionError, MemoryError):
        return None


def _value(node: ast.expr) -> Any:
    """A literal of Python, in which JSON's constants count too."""
    match node:
        case ast.Name(id=name) if name in _CONSTANTS:
            return _CONSTANTS[name]
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_value(item) for item in items]
        case ast.Dict(keys=keys, values=values):
            return {_key(key): _value(value) for key, value in zip(keys, values, strict=True)}
    return ast.literal_eval(node)


def _key(node: ast.expr | None) -> str:
    key = ast.literal_eval(node) if node is not None else None
    if not isinstance(key, str):
        raise ValueError("the keys of a JSON object are texts")
    return key


def begun_json(names: Collection[str]) -> re.Pattern[str]:
    """What a JSON object that is certainly a call begins with, up to its arguments' bracket."""
    listed = "|".join(map(re.escape, names))
    return re.compile(
        r'\{\s*(?:"type"\s*:\s*"function"\s*,\s*)?"name"\s*:\s*"(?P<name>' + listed + r')"\s*,\s*'
        r'"(?:parameters|arguments)"\s*:\s*(?=\{)'
    )


_FIRST_KEY = re.compile(r'\{\s*(?:(?P<other>[^\s"])|"(?P<key>[^"\\]*)["\\])')
_NAME = re.compile(r'\{\s*(?:"type"\s*:\s*"function"\s*,\s*)?"name"\s*:\s*"(?P<name>[^"\\]*)["\\]')


def is_other_json(text: str, names: Collection[str]) -> bool:
    """Whether the beginning of a JSON object shows that it is no call."""
    if (first := _FIRST_KEY.match(text)) and first["key"] not in KEYS:
        return True
    name = _NAME.match(text)
    return name is not None and name["name"] not in names
