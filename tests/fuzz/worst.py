"""A file below 20 MB that is made to cost its reader much, and what such files are made of."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

SIZE = 19_900_000
Made = Callable[[Path], bytes]
"""What a file shall hold, of the path at which a sound one may lie."""


@dataclasses.dataclass(frozen=True)
class Worst:
    """Whose place a file takes, in which of the folders of `seeds`, and its bytes."""

    seed: str
    file: str
    made: Made


def names(length: int = 4) -> Iterator[str]:
    """Different names of so many letters."""
    return map("".join, itertools.product("abcdefghijklmnopqrstuvwxyz0123456789", repeat=length))


def texts(count: int, length: int = 6) -> list[str]:
    """So many different texts of a length; the long ones have little in common."""
    short = itertools.islice(names(), count)
    if length <= 6:
        return [f"<{name}>" for name in short]
    return [f"<{hashlib.sha512(name.encode()).hexdigest()[: length - 2]}>" for name in short]


def filled(size: int, part: str, begin: str = "", end: str = "") -> bytes:
    """As many parts as fit, joined by commas, each with a name of its own in place of `%s`."""
    count = (size - len(begin) - len(end)) // (len(part % "aaaa") + 1)
    return (
        begin + ",".join(part % name for name in itertools.islice(names(), count)) + end
    ).encode()


def adding(key: str, value: Callable[[int], bytes], size: int) -> Made:
    """A JSON object with one more key, of about so many bytes."""

    def made(file: Path) -> bytes:
        sound = file.read_bytes().rstrip()[:-1].rstrip() + b"," if file.exists() else b"{"
        head = sound + f'"{key}":'.encode()
        return head + value(size - len(head) - 2) + b"}"

    return made


def changed(change: Callable[[Any], Any]) -> Made:
    """A JSON object, changed in place."""

    def made(file: Path) -> bytes:
        value = json.loads(file.read_bytes())
        change(value)
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()

    return made


def objects(size: int) -> bytes:
    """Small objects, which take the most memory for their bytes."""
    return b"[" + b'{"":0},' * (size // 7 - 1) + b"0]"


def lists(size: int) -> bytes:
    return b"[" + b"[0]," * (size // 4 - 1) + b"0]"


def deep(size: int) -> bytes:
    return b"[" * (size // 2) + b"]" * (size // 2)


def dots(size: int) -> bytes:
    return b'"' + b"a." * (size // 2 - 2) + b'"'


OF_JSON = {"objects": objects, "lists": lists, "depth": deep, "a text": dots}
"""What any JSON file may be full of."""
