"""Checks of values that people give: each failure is a ValueError that names the value.

A value of another kind than is taken, 5 for a list say, is a TypeError too.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from typing import Any


class WrongKindError(TypeError, ValueError):
    """A value of a kind that is not taken: Python's error for it, and ours for a wrong value."""


def wrong_kind(name: str, value: Any, way_out: str) -> WrongKindError:
    """The error of a value of a kind that is not taken, which says what to pass instead."""
    return WrongKindError(f"{name}={value!r:.60} is of the kind {type(value).__name__}; {way_out}")


def check_count(name: str, value: Any, at_most: int | None = None) -> None:
    """ValueError where `value` is no positive integer, or above `at_most`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}={value!r} must be a positive integer")
    if at_most is not None and value > at_most:
        raise ValueError(f"{name}={value} must be at most {at_most:,}; no model has as many")


def check_flag(owner: Any, name: str) -> None:
    """ValueError where a field is neither True nor False."""
    value = getattr(owner, name)
    if not isinstance(value, bool):
        raise ValueError(f"{name}={value!r} must be True or False")


def check_number(
    owner: Any, name: str, *, at_least: float = -math.inf, above: float = -math.inf
) -> None:
    """Checks a real field and stores it as a float, so that 10000 and 10000.0 are one config."""
    value = getattr(owner, name)
    real = isinstance(value, int | float) and not isinstance(value, bool)
    # An integer may be too large to be a float at all, and is compared as it is.
    if not real or not abs(value) <= sys.float_info.max or value < at_least or value <= above:
        bound = f"at least {at_least}" if at_least > -math.inf else f"above {above}"
        raise ValueError(f"{name}={value!r} must be a finite number {bound}")
    object.__setattr__(owner, name, float(value))


def check_keys(cls: type, fields: Any, what: str) -> dict[str, Any]:
    """The fields, once they are a JSON object with just the keys of a dataclass."""
    if not isinstance(fields, dict):
        raise ValueError(f"{what} must be a JSON object, not {type(fields).__name__}")
    names = {f.name for f in dataclasses.fields(cls)}
    if missing := sorted(names - fields.keys()):
        raise ValueError(f"{what} lacks {', '.join(missing)}")
    if unknown := sorted(fields.keys() - names):
        raise ValueError(f"{what} has unknown keys {', '.join(unknown)}; it knows {sorted(names)}")
    return fields
