"""What a chat template may do with values: operators, methods and filters, each with a measure.

An operation that can make much of little is refused by its arguments, before it runs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sized
from typing import Any

from jinja2.exceptions import SecurityError

from llama_jax.tokenizer.template_budget import MAX_BITS, budget

MAX_FACTOR = 1_000
"""What `'a' * n` and `a ** n` take."""
MAX_CALLS = 10_000
"""The limit on the braces of one `str.format`."""

METHODS: dict[type, frozenset[str]] = {
    str: frozenset(
        (
            *("capitalize", "casefold", "center", "count", "endswith", "expandtabs", "find"),
            *("index", "isalnum", "isalpha", "isascii", "isdecimal", "isdigit", "isidentifier"),
            *("islower", "isnumeric", "isprintable", "isspace", "istitle", "isupper", "join"),
            *("ljust", "lower", "lstrip", "partition", "removeprefix", "removesuffix", "replace"),
            *("rfind", "rindex", "rjust", "rpartition", "rsplit", "rstrip", "split"),
            *("splitlines", "startswith", "strip", "swapcase", "title", "translate", "upper"),
            "zfill",
        )
    ),
    dict: frozenset(("copy", "get", "items", "keys", "values")),
    list: frozenset(("copy", "count", "index")),
    tuple: frozenset(("count", "index")),
    int: frozenset(("bit_length", "conjugate")),
    float: frozenset(("is_integer", "conjugate")),
}
"""The methods of Python's own types that a template may call."""
_SPACES = "".join(c for c in map(chr, range(0x3001)) if c.isspace())
_LINES = "\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"
_PART, _SHORT = 80, 2**17
"""Bytes of a part of a text that is cut, and the characters that make few enough of them."""
_DIGITS = re.compile(r"\d+")
_NESTED = re.compile(r"\{[^{}]*\{")


def check_operation(operator: str, left: Any, right: Any) -> None:
    """Refuses `left operator right` where its value would be large."""
    if isinstance(left, int | float) and isinstance(right, int | float):
        if operator == "**":
            _check_factors(operator, left, right)
        elif sum(side.bit_length() for side in (left, right) if isinstance(side, int)) > MAX_BITS:
            raise SecurityError(f"{operator} makes no number beyond {MAX_BITS:,} bits")
    elif operator in ("*", "**"):
        _check_factors(operator, left, right)
    elif operator == "%" and isinstance(left, str):
        check_percent(left, right)
    elif operator == "+" and isinstance(left, str | list | tuple):
        budget().allow(budget().size(left) + budget().size(right))


def _check_factors(operator: str, *sides: Any) -> None:
    for side in sides:
        if (abs(side) if isinstance(side, int | float) else len(side)) > MAX_FACTOR:
            raise SecurityError(f"{operator} takes nothing beyond {MAX_FACTOR:,}")


def check_percent(form: str, given: Any) -> None:
    """Refuses a `form % given` that would be long."""
    if "*" in form:
        raise SecurityError("% takes no width from its arguments")
    _check_form(form, "%", given)


def check_format(form: str, given: Any) -> None:
    """Refuses a `form.format(given)` that would be long."""
    if _NESTED.search(form):
        raise SecurityError("format takes no width from its arguments")
    if form.count("{") > MAX_CALLS:
        raise SecurityError(f"format takes at most {MAX_CALLS:,} fields")
    _check_form(form, "{", given)


def _check_form(form: str, mark: str, given: Any) -> None:
    widths = sum(int(number[:9]) for number in _DIGITS.findall(form))
    budget().allow(len(form) + widths + form.count(mark) * budget().size(given))


def check_method(
    name: str, owner: Any, given: tuple[Any, ...], named: Mapping[str, Any]
) -> tuple[Any, ...]:
    """The arguments for a method of one of Python's types; SecurityError where it is refused."""
    kind = next((kind for kind in METHODS if isinstance(owner, kind)), None)
    if kind is None or name not in METHODS[kind]:
        raise SecurityError(f"it calls {type(owner).__name__}.{name}, which templates may not")
    if kind is str and name == "join" and given:
        parts = list(budget().turns(given[0]))
        budget().allow(budget().size(parts) + len(parts) * len(owner))
        return (parts, *given[1:])
    if kind is str and name in _OF_TEXTS:
        _OF_TEXTS[name](owner, *given, **named)
    return given


def check_width(text: str, width: Any = 0, *_: Any) -> None:
    """Refuses a text padded to a large width."""
    if isinstance(width, int):
        budget().allow(len(text) + width)


def _check_tabs(text: str, tabsize: Any = 8) -> None:
    if isinstance(tabsize, int):
        budget().allow(len(text) + text.count("\t") * max(tabsize, 0))


def check_replace(text: Any, old: Any = "", new: Any = "", *_: Any) -> None:
    """Refuses a text that would be long when `old` is `new` in it."""
    for one in (text, old, new):
        budget().allow(budget().size(one))
    text, old, new = str(text), str(old), str(new)
    budget().allow(budget().size(text) + text.count(old) * len(new) * 4)


def _check_translate(text: str, table: Any = None, *_: Any) -> None:
    if isinstance(table, Mapping):
        longest = max((len(one) for one in table.values() if isinstance(one, Sized)), default=1)
        budget().allow(len(text) * max(longest, 1))


def check_search(text: str, other: Any = "", *_: Any) -> None:
    """Refuses a long search: Python looks for a text from the right, or for a set of characters,
    in a time that grows as the product of both lengths.
    """
    if isinstance(other, str):
        budget().work(len(text) * len(other))


def check_split(text: str, sep: Any = None, *_: Any, **__: Any) -> None:
    """Refuses a text that would be cut into very many parts."""
    if len(text) > _SHORT:
        marks = [sep] if isinstance(sep, str) and sep else _SPACES
        budget().allow(sum(map(text.count, marks)) * _PART + len(text))


def check_lines(text: str, each: int) -> None:
    """Refuses a text of very many lines, to each of which so many characters are added."""
    lines = sum(map(text.count, _LINES))
    budget().allow(budget().size(text) + (each + _PART) * (lines + 2))


def check_words(value: Any, *_: Any, **__: Any) -> None:
    """Refuses a text that a filter written in Python would cut into very many words."""
    budget().allow(budget().size(value) * _PART // 2)


def _check_rsplit(text: str, sep: Any = None, *_: Any, **__: Any) -> None:
    check_split(text, sep)
    check_search(text, sep)


def _check_splitlines(text: str, *_: Any, **__: Any) -> None:
    check_split(text)


_OF_TEXTS: dict[str, Callable[..., None]] = {
    **dict.fromkeys(("center", "ljust", "rjust", "zfill"), check_width),
    **dict.fromkeys(("rfind", "rindex", "rpartition"), check_search),
    **dict.fromkeys(("strip", "lstrip", "rstrip"), check_search),
    "expandtabs": _check_tabs,
    "replace": check_replace,
    "translate": _check_translate,
    "split": check_split,
    "rsplit": _check_rsplit,
    "splitlines": _check_splitlines,
}
