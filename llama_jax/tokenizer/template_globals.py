"""The functions that a chat template may call, besides Jinja's own: each pays for what it makes."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from jinja2.exceptions import SecurityError, TemplateError
from jinja2.utils import Namespace

from llama_jax.tokenizer.template_budget import budget

MAX_DATE_FORM = 1_000
"""Characters of a form of a date."""


class _Namespace(Namespace):
    def __getattribute__(self, name: str) -> Any:
        # A template's own `__call__` would be called past the sandbox's check.
        if name.startswith("_"):
            return object.__getattribute__(self, name)
        return super().__getattribute__(name)

    def __repr__(self) -> str:  # what it holds may change after it was measured, and grow
        return "<Namespace>"


def _namespace(*items: Any, **named: Any) -> _Namespace:
    return _Namespace(budget().made(_dict(*items, **named)))


def _dict(items: Any = (), /, **named: Any) -> dict[Any, Any]:
    # The class itself would lend its other methods, and be filled without a look at the clock.
    return dict(items if isinstance(items, Mapping) else budget().turns(items), **named)


def _now(form: str) -> str:
    if len(form) > MAX_DATE_FORM:
        raise SecurityError(f"a form of a date has at most {MAX_DATE_FORM:,} characters")
    return datetime.datetime.now().strftime(form)


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


GLOBALS: dict[str, Callable[..., Any]] = {
    "dict": _dict,
    "namespace": _namespace,
    "raise_exception": _raise,
    "strftime_now": _now,
}
