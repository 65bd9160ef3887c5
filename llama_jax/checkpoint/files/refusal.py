"""A file that is refused, in words for a person; what it holds is not trusted even to be short."""

from __future__ import annotations

from collections.abc import Sequence


class Refused(ValueError):
    """What is wrong with a file, in words for a person, who still has to be told which file."""


def shorten(text: object) -> str:
    """Text from a file, fit to stand in a message."""
    shown = repr(str(text))
    return shown if len(shown) <= 200 else f"{shown[:196]}...'"


def listed(names: Sequence[str]) -> str:
    """The first few names from a file, and how many more there are."""
    shown = ", ".join(map(shorten, names[:3]))
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
