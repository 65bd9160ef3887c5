"""Where the control token before a call stands in a text, which does not have it."""

from __future__ import annotations

from collections.abc import Sequence

from llama_jax.tokenizer import Detokenizer, Tokenizer

PYTHON_TAG = "<|python_tag|>"
MARK = "\ud800"
"""Stands for the tag in a text. It is no character, so no text has it."""


class Tags:
    """Where a control token stands in the text of an answer, which may lag behind its tokens."""

    def __init__(self, tokenizer: Tokenizer, tag: int) -> None:
        self._detokenizer, self._tag = Detokenizer(tokenizer), tag
        self._spelled = self._given = 0
        self._places: list[int] = []

    def marked(self, text: str, tokens: Sequence[int]) -> str:
        """The text with a mark for each tag in it."""
        for token in tokens:
            if token == self._tag:
                self._places.append(self._spelled)
            else:
                self._spelled += len(self._detokenizer.push(token))
        whole, begin = "", self._given
        self._given += len(text)
        while self._places and self._places[0] <= self._given:
            place = max(self._places.pop(0), begin)
            whole += text[len(text) - (self._given - begin) : len(text) - (self._given - place)]
            whole, begin = whole + MARK, place
        return whole + text[len(text) - (self._given - begin) :]
