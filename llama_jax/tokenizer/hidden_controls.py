"""Control tokens that messages and tools spell, hidden from a chat template."""

from __future__ import annotations

import itertools
import re
import secrets
from collections.abc import Callable, Mapping
from typing import TypeVar

T = TypeVar("T")
Encode = Callable[[str, bool, bool], list[T]]
"""Encodes a text: whether its control tokens are found, or are text; whether a text begins with it,
or goes on."""


class HiddenControls:
    """Digits that stand for the control tokens in a dialog's texts, while a template writes it.

    `special` are the control tokens' spellings and ids.
    """

    def __init__(self, special: Mapping[str, int]) -> None:
        self._special = special
        self._names = list(special)
        self._numbers = {name: n for n, name in enumerate(self._names)}
        lengths: dict[str, set[int]] = {}
        for name in filter(None, self._names):
            lengths.setdefault(name[:1], set()).add(len(name))
        # A pattern of all names would take Python seconds to make where a file has many.
        self._lengths = {first: sorted(each, reverse=True) for first, each in lengths.items()}
        # Nobody can forge the mark, and no template changes digits.
        self._mark = f"{secrets.randbits(128):039d}"
        self._shown = re.compile(self._mark + "([0-9]{6})")
        self.placeholder = f"{self._mark}{len(special):06d}"
        """Digits that stand for no control token, and that no text holds."""

    def hide(self, text: str) -> str:
        """`text` with digits for each control token that it spells."""
        pieces = self._split(text)
        pieces[1::2] = [f"{self._mark}{self._numbers[name]:06d}" for name in pieces[1::2]]
        return "".join(pieces)

    def reveal(self, text: str) -> str:
        """`text` with the spellings in the digits' place."""
        return self._shown.sub(lambda found: self._names[int(found[1])], text)

    def begins(self, text: str) -> str | None:
        """The control token that `text` begins with."""
        for length in self._lengths.get(text[:1], ()):
            if text[:length] in self._numbers:
                return text[:length]
        return None

    def _split(self, text: str) -> list[str]:
        """Text, control token, text, ..., text: of several in one place the longest."""
        pieces, at = [], 0
        for begin, char in enumerate(text):
            if begin < at or char not in self._lengths:
                continue
            for length in self._lengths[char]:
                if (name := text[begin : begin + length]) in self._numbers:
                    pieces += [text[at:begin], name]
                    at = begin + length
                    break
        return [*pieces, text[at:]]

    def encode(self, rendered: str, encode: Encode[int]) -> list[int]:
        """The ids of what a template wrote; what was hidden is text."""
        runs = self.runs(rendered, encode)
        return [id for n, run in enumerate(runs) for id in encode(*run, n == 0)]

    def runs(self, rendered: str, encode: Encode[int]) -> list[tuple[str, bool]]:
        """The rendered text, revealed, in runs; of each whether its control tokens are found."""
        pieces = self._split(rendered)
        plain = [self._mark in piece for piece in pieces]
        if not any(plain):
            ids = encode(rendered, True, True)
            # Text may make unk.
            controls = set(self._special.values()).difference(encode(rendered, False, True))
            if sum(id in controls for id in ids) <= len(pieces) // 2:
                return [(rendered, True)]
            # A normalizer made a control token of a text that spells none.
            plain = [n % 2 == 0 and piece != "" for n, piece in enumerate(pieces)]
        grouped = itertools.groupby(range(len(pieces)), plain.__getitem__)
        return [
            (self.reveal("".join(pieces[n] for n in run)), not is_plain)
            for is_plain, run in grouped
        ]
