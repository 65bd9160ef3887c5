"""The documentation of a dataclass's fields, where `help()` finds it."""

from __future__ import annotations

import ast
import inspect
import itertools
import textwrap
from typing import Any, TypeVar

Class = TypeVar("Class", bound=type)


def with_field_docs(cls: Class) -> Class:
    """A dataclass whose `__doc__` also says what is written under its fields.

    Python keeps nothing of a string under a field, so the class's source is read when somebody
    asks.
    """
    cls.__doc__ = _Doc(cls.__doc__ or "")  # type: ignore[assignment]  # looked up as any attribute
    return cls


class _Doc:
    """A docstring that is made when it is asked for."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __get__(self, instance: Any, cls: type) -> str:
        if not (fields := field_docs(cls)):
            return self._text
        lines = [
            textwrap.fill(f"{name}: {text}", 96, initial_indent="  ", subsequent_indent="    ")
            for name, text in fields.items()
        ]
        return "\n".join([inspect.cleandoc(self._text), "", "Fields:", *lines])


def field_docs(cls: type) -> dict[str, str]:
    """The strings under a class's fields, by the fields' names; none where there is no source."""
    try:
        source = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    except (OSError, TypeError, SyntaxError):
        return {}
    body = [line for node in source.body if isinstance(node, ast.ClassDef) for line in node.body]
    found = {}
    for field, after in itertools.pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            match after:
                case ast.Expr(value=ast.Constant(value=str(text))):
                    found[field.target.id] = " ".join(text.split())
    return found
