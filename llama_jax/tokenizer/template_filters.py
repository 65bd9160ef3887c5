"""The filters of a chat template: which there are, and what is asked of their arguments first."""

from __future__ import annotations

import json
import types
from collections.abc import Callable, Iterable
from typing import Any

from jinja2.exceptions import SecurityError

from llama_jax.tokenizer.template_budget import MAX_BITS, budget
from llama_jax.tokenizer.template_values import (
    MAX_FACTOR,
    check_lines,
    check_percent,
    check_replace,
    check_search,
    check_width,
    check_words,
)

MAX_INDENT = 32
"""Characters of an indent or a separator of JSON."""
NO_FILTERS = frozenset(
    ("pprint", "random", "striptags", "urlize", "wordwrap", "xmlattr", "filesizeformat")
)
"""Jinja's filters for web pages, whose cost nothing bounds, and `random`."""


def _check_indent(text: Any, width: Any = 4, *_: Any, **named: Any) -> None:
    width = named.get("width", width)
    check_lines(str(text), width if isinstance(width, int) else len(width))


def _check_round(value: Any, precision: Any = 0, *_: Any, **named: Any) -> None:
    if abs(named.get("precision", precision)) > MAX_FACTOR:
        raise SecurityError(f"round takes nothing beyond {MAX_FACTOR:,} digits")


def _check_count(value: Any, count: Any = 0, *_: Any, **named: Any) -> None:
    count = named.get("linecount", named.get("slices", count))
    if isinstance(count, int):
        budget().allow(16 * count)


def _check_center(value: Any, width: Any = 80, *_: Any, **named: Any) -> None:
    check_width(str(value), named.get("width", width))


def _check_trim(value: Any, chars: Any = None, *_: Any, **named: Any) -> None:
    check_search(str(value), named.get("chars", chars))


def _check_filter_replace(value: Any, old: Any = "", new: Any = "", *_: Any, **named: Any) -> None:
    check_replace(value, named.get("old", old), named.get("new", new))


def _check_join(value: Any, d: Any = "", *_: Any, **named: Any) -> list[Any]:
    parts = list(budget().turns(value))
    between = budget().size(named.get("d", d))
    budget().allow(budget().size(parts) + len(parts) * between)
    return parts


def _check_sum(value: Any, attribute: Any = None, start: Any = 0, **named: Any) -> None:
    if not isinstance(named.get("start", start), int | float):
        raise SecurityError("sum takes numbers; it would copy lists at every addition")


def _check_int(value: Any, *_: Any, **__: Any) -> None:
    if isinstance(value, str) and len(value) > MAX_BITS:
        raise SecurityError(f"int takes at most {MAX_BITS:,} characters")


def _check_dictsort(value: Any, *_: Any, **__: Any) -> None:
    budget().step(len(value))


def _check_filter_format(value: Any, *given: Any, **named: Any) -> None:
    check_percent(str(value), [*given, named])


OF_FILTERS: dict[str, Callable[..., Any]] = {
    "batch": _check_count,
    "center": _check_center,
    "dictsort": _check_dictsort,
    "format": _check_filter_format,
    "indent": _check_indent,
    "int": _check_int,
    "join": _check_join,
    "replace": _check_filter_replace,
    "round": _check_round,
    "slice": _check_count,
    "sum": _check_sum,
    "trim": _check_trim,
    **dict.fromkeys(("title", "urlencode", "wordcount"), check_words),
}
"""What is asked of a filter's arguments before it runs; the value it is then given, or None."""


def _no_path(*_: Any, **__: Any) -> Iterable[Any]:
    return ()


def _any_path(*given: Any, **named: Any) -> Iterable[Any]:
    return *given, *named.values()


def _first_path(*given: Any, **_: Any) -> Iterable[Any]:
    return given[:1]


def _named_path(*_: Any, attribute: Any = None, **__: Any) -> Iterable[Any]:
    return (attribute,)


_TAKE_ITEMS: dict[str, Callable[..., Iterable[Any]]] = {
    **dict.fromkeys(("batch", "list", "reject", "select", "slice"), _no_path),
    **dict.fromkeys(("groupby", "max", "min", "sort", "sum", "unique"), _any_path),
    **dict.fromkeys(("rejectattr", "selectattr"), _first_path),
    "map": _named_path,
}
"""The filters that take item after item, and the arguments that can be paths to an attribute."""


def items_of(name: str, value: Any, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """The value that a filter takes, its items paid for as a loop's are.

    Of a path such as `a.b` each step is one more turn: Jinja looks it up for every item.
    """
    if name not in _TAKE_ITEMS or not value:  # of no value at all some filters make nothing
        return value
    paths = [one for one in _TAKE_ITEMS[name](*given, **named) if isinstance(one, str)]
    each = 1 + sum(path.count(".") + path.count(",") for path in paths)
    if each == 1 and isinstance(value, types.GeneratorType):  # another filter's, paid for already
        return value
    budget().step(each)
    return budget().turns(value, each)


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """The filter `tojson`, as transformers has it."""
    budget().allow(budget().size(value))
    made = json.JSONEncoder(
        ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    longest = indent if isinstance(indent, int) else len(indent or "")
    if max(longest, *map(len, separators or ("", ""))) > MAX_INDENT:
        raise SecurityError(f"tojson takes no indent or separator beyond {MAX_INDENT}")
    if indent is None:
        return made.encode(value)
    parts, length = [], 0
    for part in made.iterencode(value):
        parts.append(part)
        length += len(part)
        budget().tick()
        budget().allow(length)
    return "".join(parts)
