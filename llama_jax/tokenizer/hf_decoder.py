"""How a token of tokenizer.json is spelled in bytes, by its decoder.

The library decodes whole texts; a stream needs the bytes of each token, before they are a text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from typing import Any

Spelling = Callable[[str, bool], tuple[bytes, bool]]
"""A token, and whether a text begins with it, to its bytes and whether the next one begins it."""


def spelling_of(decoder: Any, added: Collection[str] = ()) -> Spelling | None:
    """The spelling that a decoder of tokenizer.json means; None if it is of another kind.

    The `added` tokens are spelled as they are, whatever the alphabet of the others.
    """
    steps = list(_steps(decoder))
    kinds = [step.get("type") for step in steps]
    if "ByteLevel" in kinds:
        return _byte_level(added) if set(kinds) <= {"ByteLevel", "Fuse"} else None
    return _sentencepiece(steps) if steps else None


def part_of_character(token: str, decoder: Any, added: Collection[str]) -> bytes | None:
    """The bytes of a token that spells no whole characters, by a decoder of any kind; or None.

    The library decodes whole texts: part of a character by itself is U+FFFD to it.
    """
    kinds = {step.get("type") for step in _steps(decoder)}
    if "ByteFallback" in kinds and (byte := _BYTE.fullmatch(token)):
        return bytes.fromhex(byte[1])
    if "ByteLevel" in kinds and token not in added and BYTE_OF.keys() >= set(token):
        spelled = bytes(BYTE_OF[character] for character in token)
        return spelled if "\ufffd" in spelled.decode(errors="replace") else None
    return None


def _steps(decoder: Any) -> Iterator[dict[str, Any]]:
    if isinstance(decoder, dict) and decoder.get("type") == "Sequence":
        for step in decoder.get("decoders", ()):
            yield from _steps(step)
    elif isinstance(decoder, dict):
        yield decoder


def _alphabet() -> dict[str, int]:
    """GPT-2's character for each byte: itself where it prints, else the next from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    shifted = {chr(256 + n): byte for n, byte in enumerate(others)}
    return {chr(byte): byte for byte in printable} | shifted


BYTE_OF = _alphabet()
_MAX_TOKEN = 2**20
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_level(added: Collection[str]) -> Spelling:
    def spell(token: str, at_start: bool) -> tuple[bytes, bool]:
        if token in added or not BYTE_OF.keys() >= set(token):
            return token.encode(), False
        return bytes([BYTE_OF[character] for character in token]), False

    return spell


def _sentencepiece(steps: list[dict[str, Any]]) -> Spelling | None:
    """A mark for a space, perhaps bytes, and what becomes of the spaces a text begins with."""
    marks: list[tuple[str, str]] = []
    falls_back = fused = drops_one = drops_all = False
    for step in steps:
        match step:
            case {"type": "Replace", "pattern": {"String": str(mark)}, "content": str(content)}:
                marks.append((mark, content))
            case {"type": "Metaspace", "replacement": str(mark)}:
                marks.append((mark, " "))
                scheme = step.get("prepend_scheme", "always")
                drops_all = scheme != "never" and step.get("add_prefix_space", True) is True
            case {"type": "ByteFallback"}:
                falls_back = True
            case {"type": "Fuse"}:
                fused = True
            case {"type": "Strip", "content": " ", "start": 0 | 1 as start, "stop": 0} if fused:
                drops_one = start == 1
            case _:
                return None

    def spell(token: str, at_start: bool) -> tuple[bytes, bool]:
        if falls_back and (byte := _BYTE.fullmatch(token)):
            text = bytes.fromhex(byte[1])
            return (b"" if at_start and drops_one and text == b" " else text), False
        if at_start and drops_all:
            for mark, _ in marks:
                token = token.replace(mark, "")
        for mark, content in marks:
            if token.count(mark) * len(content) > _MAX_TOKEN:
                raise ValueError(
                    f"the decoder in tokenizer.json makes a token of over {_MAX_TOKEN:,} "
                    "characters; copy or download the file again"
                )
            token = token.replace(mark, content)
        return token.removeprefix(" " if at_start and drops_one else "").encode(), False

    return spell
