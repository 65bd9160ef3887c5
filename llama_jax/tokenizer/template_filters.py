"""The filters of a chat template: which there are, and what is asked of their arguments first."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from jinja2.exceptions import SecurityError

from llama_jax.tokenizer.template_budget import budget
from llama_jax.tokenizer.template_values import (
    MAX_FACTOR,
    check_percent,
    check_replace,
    check_search,
    check_split,
    check_width,
)

MAX_INDENT = 32
"""Characters of an indent or a separator of JSON."""
NO_FILTERS = frozenset(
    ("pprint", "random", "striptags", "urlize", "wordwrap", "xmlattr", "filesizeformat")
)
"""Jinja's filters for web pages, whose cost nothing bounds, and `random`."""


def _check_indent(text: Any, width: Any = 4, *_: Any, **named: Any) -> None:
    width = named.get("width", width)
    each = width if isinstance(width, int) else len(width)
    budget().allow(budget().size(text) + each * (str(text).count("\n") + 2))


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


def _check_words(value: Any, *_: Any, **__: Any) -> None:
    check_split(str(value))


def _check_filter_format(value: Any, *given: Any, **named: Any) -> None:
    check_percent(str(value), [*given, named])


OF_FILTERS: dict[str, Callable[..., Any]] = {
    "batch": _check_count,
    "center": _check_center,
    "format": _check_filter_format,
    "indent": _check_indent,
    "join": _check_join,
    "replace": _check_filter_replace,
    "round": _check_round,
    "slice": _check_count,
    "sum": _check_sum,
    "trim": _check_trim,
    "wordcount": _check_words,
}
"""What is asked of a filter's arguments before it runs; the value it is then given, or None."""


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
