"""What is said to a person of files: what is wrong with one, and how large. What it holds is not
trusted even to be short.
"""

from __future__ import annotations

from collections.abc import Sequence

FETCH_AGAIN = "download or copy it again"
"""The way out of a damaged file."""
LFS_POINTER = (
    b"version https://git-lfs",
    "is a Git LFS pointer, not the weights; fetch them: git lfs pull",
)
"""How what lies in place of any file of a clone begins, and what it is."""

_MAX_NAME = 1024


def no_weight(dtype: object) -> str:
    """What to do about a tensor of another dtype than a weight's."""
    known = "only float16, bfloat16 and float32 weights are read"
    if str(dtype) == "float64":
        return f"{known}; cast it to float32 and save it again"
    return f"{known}, so of a quantized model get the bfloat16 files"


class Refused(ValueError):
    """What is wrong with a file, in words for a person, who still has to be told which file."""


def check_tensor_name(name: str) -> None:
    """Refused where a tensor's name is longer than any model's: patterns are tried on names."""
    if len(name) > _MAX_NAME:
        raise Refused(
            f"it names a tensor {shorten(name)}, of {len(name):,} characters, and a name has at "
            f"most {_MAX_NAME:,}; {FETCH_AGAIN}"
        )


def shorten(text: object) -> str:
    """Text from a file, fit to stand in a message."""
    shown = repr(str(text))
    return shown if len(shown) <= 200 else f"{shown[:196]}...'"


def listed(names: Sequence[str]) -> str:
    """The first few names from a file, and how many more there are."""
    shown = ", ".join(map(shorten, names[:3]))
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def in_units(count: int) -> str:
    """A number of bytes."""
    for unit, size in (("GB", 10**9), ("MB", 10**6)):
        if count >= size:
            return f"{count / size:,.2f} {unit}"
    return f"{count / 1000:,.1f} kB"
