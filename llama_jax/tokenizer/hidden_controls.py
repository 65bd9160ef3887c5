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
        longest_first = sorted(special, key=len, reverse=True)
        self._control = re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")
        # Nobody can forge the mark, and no template changes digits.
        self._mark = f"{secrets.randbits(128):039d}"
        self._shown = {name: f"{self._mark}{n:06d}" for n, name in enumerate(special)}
        self._spelled = {digits: name for name, digits in self._shown.items()}
        self.placeholder = f"{self._mark}{len(special):06d}"
        """Digits that stand for no control token, and that no text holds."""

    def hide(self, text: str) -> str:
        """`text` with digits for each control token that it spells."""
        return self._control.sub(lambda found: self._shown[found[0]], text)

    def reveal(self, text: str) -> str:
        """`text` with the spellings in the digits' place."""
        return re.sub(self._mark + "[0-9]{6}", lambda found: self._spelled[found[0]], text)

    def begins(self, text: str) -> str | None:
        """The control token that `text` begins with."""
        found = self._control.match(text)
        return found and found[0]

    def encode(self, rendered: str, encode: Encode[int]) -> list[int]:
        """The ids of what a template wrote; what was hidden is text."""
        runs = self.runs(rendered, encode)
        return [id for n, run in enumerate(runs) for id in encode(*run, n == 0)]

    def runs(self, rendered: str, encode: Encode[int]) -> list[tuple[str, bool]]:
        """The rendered text, revealed, in runs; of each whether its control tokens are found."""
        pieces = self._control.split(rendered)  # text, control token, text, ..., text
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
