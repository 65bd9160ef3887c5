"""New tokens to text, up to a stop string."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from llama_jax.tokenizer import Detokenizer, Tokenizer


class TextStream:
    """The text of one row, given out as soon as it is certain; "" throughout without a tokenizer.

    Text that may become a stop string waits until it has or has not. With stop "END", the tokens
    "a E", "N", "X" give "a ", "", "ENX". A stop string that is whole before there are
    `min_new_tokens` tokens is text like any other.
    """

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        context_ids: Sequence[int],
        stop: Sequence[str],
        min_new_tokens: int = 0,
    ) -> None:
        self._detokenizer = None if tokenizer is None else Detokenizer(tokenizer, after=context_ids)
        self._stops = [StopMatcher(text) for text in stop]
        self._left = min_new_tokens
        self._waiting = ""
        self.stopped = False
        """Whether a stop string was met: there is no text after it."""

    def push(self, token: int) -> str:
        """The text that a token makes certain."""
        if self._detokenizer is None or self.stopped:
            return ""
        self._left -= 1
        return self._certain(self._detokenizer.push(token), final=False)

    def push_all(self, tokens: Sequence[int]) -> tuple[str, int]:
        """The text that tokens make certain, and how many were taken before a stop string ended."""
        text = ""
        for taken, token in enumerate(tokens, start=1):
            text += self.push(token)
            if self.stopped:
                return text, taken
        return text, len(tokens)

    def finish(self) -> str:
        """What waited, now that nothing follows."""
        if self._detokenizer is None or self.stopped:
            return ""
        return self._certain(self._detokenizer.finish(), final=True)

    def _certain(self, new: str, final: bool) -> str:
        text, unread = self._waiting + new, len(new)
        for character in new if self._stops else "":
            unread -= 1
            met = [len(stop.text) for stop in self._stops if stop.is_whole_after(character)]
            if met and self._left <= 0:
                # Of several, the one that ends first: it does not matter how tokens cut the text.
                self.stopped, self._waiting = True, ""
                return text[: len(text) - unread - max(met)]
        held = 0 if final else max((stop.begun for stop in self._stops), default=0)
        self._waiting = text[len(text) - held :]
        return text[: len(text) - held]


class StopMatcher:
    """How far a text has begun to write a stop string (Knuth, Morris and Pratt).

    A character costs a step or two, however long the stop string is.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.begun = 0
        """How many characters at the text's end begin the stop string."""

    def is_whole_after(self, character: str) -> bool:
        """Whether a character more makes the stop string whole."""
        shorter = shorter_ends(self.text)
        while self.begun and self.text[self.begun] != character:
            self.begun = shorter[self.begun - 1]
        self.begun += self.text[self.begun] == character
        whole = self.begun == len(self.text)
        if whole:
            self.begun = shorter[-1]
        return whole


@functools.lru_cache(maxsize=64)
def shorter_ends(text: str) -> list[int]:
    """For each beginning of a text, the length of the longest shorter one that it ends with."""
    found = [0]
    for character in text[1:]:
        length = found[-1]
        while length and text[length] != character:
            length = found[length - 1]
        found.append(length + (text[length] == character))
    return found
