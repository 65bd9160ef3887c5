"""New tokens to text, up to a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from llama_jax.tokenizer import Detokenizer, Tokenizer


class TextStream:
    """The text of one row, given out as soon as it is certain; "" throughout without a tokenizer.

    Text that may become a stop string waits until it has or has not. With stop "END", the tokens
    "a E", "N", "X" give "a ", "", "ENX".
    """

    def __init__(
        self, tokenizer: Tokenizer | None, context_ids: Sequence[int], stop: Sequence[str]
    ) -> None:
        self._detokenizer = None if tokenizer is None else Detokenizer(tokenizer, after=context_ids)
        self._stop = tuple(stop)
        self._waiting = ""
        self.stopped = False
        """Whether a stop string was met: there is no text after it."""

    def push(self, token: int) -> str:
        """The text that a token makes certain."""
        if self._detokenizer is None or self.stopped:
            return ""
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
        text = self._waiting + new
        found = [(text.find(stop), len(stop)) for stop in self._stop]
        # Of several, the one that ends first, so that it does not matter how tokens cut the text.
        met = [(at + length, at) for at, length in found if at >= 0]
        if met:
            self.stopped, self._waiting = True, ""
            return text[: min(met)[1]]
        held = 0 if final else self._held(text)
        self._waiting = text[len(text) - held :]
        return text[: len(text) - held]

    def _held(self, text: str) -> int:
        """How many characters at the text's end may be the beginning of a stop string."""
        longest = max(map(len, self._stop), default=1) - 1
        for size in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-size:]) for stop in self._stop):
                return size
        return 0
