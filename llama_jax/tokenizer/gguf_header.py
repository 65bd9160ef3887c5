"""A GGUF file's head: what it says of its model, and where its tensors' descriptions begin.

The tokenizer lies in there, so this room reads it; `checkpoint/gguf` reads the tensors. Every count
and length is held against the bytes that are left before anything is made of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import re
import stat
import struct
from pathlib import Path
from typing import Any

import numpy as np

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_KEYS, MAX_ITEMS, MAX_TEXTS = 2**14, 2**22, 2**20
"""Far above any model's, and far below what would hurt to hold: keys, what all arrays have, and how
many texts are among that.
"""
BLOCK = 2**20
"""Bytes of the file that are copied at once: their texts are found faster in a copy."""
_STRING, _ARRAY = 8, 9
_NUMBERS = {
    **{0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?"},
    **{10: "<u8", 11: "<i8", 12: "<f8"},
}
SET = re.compile(r"(.*)-([0-9]{5})-of-([0-9]{5}\.gguf)")
"""The name of one of a set of files: its head, its number, and the count with the ending."""
_KEY_BYTES = 13  # the least that a key and its value take
_AGAIN = "download or copy it again"


class BrokenGGUF(ValueError):
    """What is wrong with a file, in words for a person, who still has to be told which file."""


class UnreadTokenizer(ValueError):
    """The file's tokenizer is whole, of a kind that is not read; its weights may be read."""


@dataclasses.dataclass(frozen=True)
class GGUFHeader:
    """What a GGUF file says of its model."""

    metadata: dict[str, Any]
    """By key: a bool, an int, a float, a str, an array of numbers, or a list of str."""
    tensor_count: int
    memory: np.ndarray
    """The file's bytes, mapped."""
    end: int
    """Where the tensors' descriptions begin."""


def is_gguf(path: Path) -> bool:
    """Whether a regular file begins as GGUF does."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return False
        with io.FileIO(path) as file:
            return file.read(4) == MAGIC
    except OSError:
        return False


def gguf_in(folder: Path) -> Path | None:
    """The GGUF file in a folder that holds those of one model; None without one.

    Of a set, the first. ValueError where several models lie there.
    """
    names = sorted(file.name for file in folder.glob("*.gguf"))
    models = {SET.sub(r"\1\3", name) for name in names}
    if len(models) > 1:
        raise ValueError(
            f"{folder} holds {len(models)} GGUF models, {names[0]!r:.100} and others; "
            "pass the path of one of the files"
        )
    return folder / names[0] if names else None


def read_header(path: Path) -> GGUFHeader:
    """The head of the file; every error is a ValueError that names it."""
    if not stat.S_ISREG(os.stat(path).st_mode):  # to open a pipe may be to wait for ever
        raise ValueError(f"{path} is no regular file; {_AGAIN}")
    try:
        return _read(path)
    except BrokenGGUF as error:
        raise ValueError(f"{path}: {error}") from error


def _read(path: Path) -> GGUFHeader:
    with io.FileIO(str(path)) as file:  # NumPy keeps the name of a mapped file where it is text
        start = file.read(24)
        if start[:4] != MAGIC:
            raise BrokenGGUF(f"is not a GGUF file, it begins with {start[:4]!r}; {_AGAIN}")
        if len(start) < 24:
            raise BrokenGGUF(f"is cut off at {len(start)} bytes; {_AGAIN}")
        memory = np.memmap(file, dtype=np.uint8, mode="r")
    version, tensors, keys = struct.unpack_from("<IQQ", start, 4)
    _check_version(version)
    cursor = Cursor(memory, 24)
    if keys > min(MAX_KEYS, cursor.left // _KEY_BYTES):
        raise BrokenGGUF(
            f"it claims {keys:,} keys, more than its {cursor.left:,} bytes or any model has; "
            f"it is damaged: {_AGAIN}"
        )
    metadata: dict[str, Any] = {}
    for _ in range(keys):
        key = cursor.text("a key", at_most=2**16)
        if key in metadata:
            raise BrokenGGUF(f"it has the key {key!r:.80} twice; {_AGAIN}")
        metadata[key] = _value(cursor, key)
    return GGUFHeader(metadata, tensors, memory, cursor.at)


def _check_version(version: int) -> None:
    if version in VERSIONS:
        return
    if int.from_bytes(version.to_bytes(4, "little"), "big") in (*VERSIONS, 1):
        raise BrokenGGUF("is a big-endian GGUF file, which is not read; get a little-endian one")
    raise BrokenGGUF(
        f"is GGUF of version {version}, and versions 2 and 3 are read; convert the model again "
        "with today's llama.cpp"
    )


class Cursor:
    """Reads values one after another, none beyond the end of the file."""

    def __init__(self, memory: np.ndarray, at: int) -> None:
        self._memory, self.at = memoryview(memory), at  # type: ignore[arg-type]
        self._items, self._texts = MAX_ITEMS, MAX_TEXTS

    @property
    def left(self) -> int:
        """How many bytes follow."""
        return len(self._memory) - self.at

    def number(self, kind: str, what: str) -> int:
        """An integer of a `struct` kind, "I" or "Q"."""
        size = struct.calcsize(kind)
        if size > self.left:
            raise BrokenGGUF(f"is cut off in {what!r:.80}; {_AGAIN}")
        (found,) = struct.unpack_from("<" + kind, self._memory, self.at)
        self.at += size
        return found

    def text(self, what: str, at_most: int = 2**24) -> str:
        """A string, of so many bytes at most."""
        length = self.number("Q", what)
        if length > min(at_most, self.left):
            raise BrokenGGUF(
                f"{what!r:.80} claims a text of {length:,} bytes, more than there are or it may "
                f"have; {_AGAIN}"
            )
        try:
            return self.take(length).decode()
        except UnicodeDecodeError as error:
            raise BrokenGGUF(f"{what!r:.80} is not UTF-8 ({error.reason}); {_AGAIN}") from None

    def texts(self, what: str, count: int) -> list[str]:
        """So many strings: a vocabulary has hundreds of thousands."""
        found: list[str] = []
        while len(found) < count:
            found += self._texts_of_a_block(count - len(found))
            if len(found) < count:  # it goes beyond the block, or something is wrong with it
                found.append(self.text(what))
        return found

    def _texts_of_a_block(self, most: int) -> list[str]:
        """The strings that follow and lie in the next block: bytes are faster than the file."""
        block = bytes(self._memory[self.at : self.at + BLOCK])
        found, at, length_at = [], 0, struct.Struct("<Q").unpack_from
        with contextlib.suppress(struct.error, UnicodeDecodeError):
            for _ in range(most):
                begin = at + 8
                end = begin + length_at(block, at)[0]
                if end > len(block):
                    break
                found.append(block[begin:end].decode())
                at = end
        self.at += at
        return found

    def take(self, count: int) -> bytes:
        """So many bytes, which are known to be there."""
        self.at += count
        return bytes(self._memory[self.at - count : self.at])

    def count(self, what: str, item_bytes: int, *, texts: bool = False) -> int:
        """How long an array is; the items of all arrays together are bounded."""
        found = self.number("Q", what)
        most = self._texts if texts else self._items
        if found > min(most, self._items, self.left // item_bytes):
            raise BrokenGGUF(
                f"{what!r:.80} claims {found:,} items, more than the file has room for or any "
                f"model needs; {_AGAIN}"
            )
        self._items -= found
        self._texts -= found * texts
        return found


def _value(cursor: Cursor, key: str) -> Any:
    kind = cursor.number("I", key)
    if kind == _STRING:
        return cursor.text(key)
    if kind == _ARRAY:
        return _array(cursor, key)
    return _numbers(cursor, key, kind, 1)[0].item()


def _array(cursor: Cursor, key: str) -> Any:
    kind = cursor.number("I", key)
    if kind == _STRING:
        return cursor.texts(key, cursor.count(key, 8, texts=True))
    if kind == _ARRAY:
        raise BrokenGGUF(f"{key!r:.80} is an array of arrays, which no LLaMA's file has; {_AGAIN}")
    return _numbers(cursor, key, kind, None)


def _numbers(cursor: Cursor, key: str, kind: int, count: int | None) -> np.ndarray:
    if kind not in _NUMBERS:
        raise BrokenGGUF(f"{key!r:.80} has the unknown type {kind}; {_AGAIN}")
    dtype = np.dtype(_NUMBERS[kind])
    if count is None:
        count = cursor.count(key, dtype.itemsize)
    elif dtype.itemsize > cursor.left:
        raise BrokenGGUF(f"is cut off in {key!r:.80}; {_AGAIN}")
    return np.frombuffer(cursor.take(count * dtype.itemsize), dtype)
