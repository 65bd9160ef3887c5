"""Log-probabilities in OpenAI's two forms, each token with its true bytes.

A token need not be whole characters, and then it has no text: it is written `bytes:\\xe2\\x80`.
A control token has no bytes; it is written by its name.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from typing import Any

from llama_jax.generation.results import TokenLogprob
from llama_jax.serve.openai.answers import ChatLogprob, LegacyLogprobs, TopLogprob
from llama_jax.tokenizer import Tokenizer

LEAST = -9999.0
"""What stands for minus infinity, which JSON has not; OpenAI's own number."""


class Spelling:
    """How the tokens of a text are written, one after the other. `after` comes before them."""

    def __init__(self, tokenizer: Tokenizer, after: Iterable[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._names = {id: name for name, id in tokenizer.special.items()}
        self._at_start = True
        for id in after:
            if not self._at_start:
                break
            self._at_start = tokenizer.token_bytes(id, at_start=True)[1]

    def spelled(self, id: int) -> tuple[str, bytes | None]:
        """A token as it would be here: its text and its bytes; a control token has none."""
        data = self._tokenizer.token_bytes(id, at_start=self._at_start)[0]
        if not data and id in self._names:
            return self._names[id], None
        try:
            return data.decode(), data
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data), data

    def take(self, id: int) -> bytes:
        """Goes on to the next token; the bytes that this one added."""
        data, self._at_start = self._tokenizer.token_bytes(id, at_start=self._at_start)
        return data


def chat_form(spelling: Spelling, entries: Sequence[TokenLogprob]) -> list[ChatLogprob]:
    """The entries of new tokens, as chats have them."""
    found = []
    for entry in entries:
        top = [TopLogprob(*_spelled(spelling, id, lp)) for id, lp in _same(entry).items()]
        one = ChatLogprob(*_spelled(spelling, entry.token, entry.logprob), top_logprobs=top)
        found.append(one)
        spelling.take(entry.token)
    return found


def _spelled(spelling: Spelling, id: int, logprob: float) -> tuple[str, float, list[int] | None]:
    text, data = spelling.spelled(id)
    return text, max(logprob, LEAST), None if data is None else list(data)


class LegacyForm:
    """The entries of a text's tokens, as completions have them, with each token's offset.

    The alternatives at a token include the token itself.
    """

    def __init__(self, spelling: Spelling) -> None:
        self._spelling = spelling
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._offset = 0

    def entries(self, ids: Sequence[int], entries: Sequence[TokenLogprob | None]) -> LegacyLogprobs:
        """The log-probabilities of the next tokens of the text."""
        found = LegacyLogprobs([], [], [], [])
        for id, entry in zip(ids, entries, strict=True):
            found.tokens.append(self._spelling.spelled(id)[0])
            found.text_offset.append(self._offset)
            found.token_logprobs.append(None if entry is None else max(entry.logprob, LEAST))
            found.top_logprobs.append(None if entry is None else self._top(entry))
            self._offset += len(self._utf8.decode(self._spelling.take(id)))
        return found

    def _top(self, entry: TokenLogprob) -> dict[str, float]:
        top: dict[str, float] = {}
        for id, logprob in {**_same(entry), entry.token: entry.logprob}.items():
            top.setdefault(self._spelling.spelled(id)[0], max(logprob, LEAST))
        return top


def _same(entry: TokenLogprob) -> dict[int, float]:
    """The alternatives; the token itself has one number, here and where it stands alone.

    Evaluations compare the two exactly to see whether a token was the likeliest.
    """
    own = {entry.token: entry.logprob} if entry.token in entry.top else {}
    return {**entry.top, **own}


def prompt_form(
    tokenizer: Tokenizer, prompt: Sequence[int], entries: Sequence[TokenLogprob | None]
) -> list[dict[str, Any] | None]:
    """The entries of a prompt's tokens, by id, as vLLM has them; the first has none."""
    spelling = Spelling(tokenizer)
    found: list[dict[str, Any] | None] = []
    for id, entry in zip(prompt, entries, strict=True):
        found.append(None if entry is None else _by_id(spelling, entry))
        spelling.take(id)
    return found


def _by_id(spelling: Spelling, entry: TokenLogprob) -> dict[str, Any]:
    return {
        str(id): {"logprob": max(logprob, LEAST), "decoded_token": spelling.spelled(id)[0]}
        for id, logprob in {**_same(entry), entry.token: entry.logprob}.items()
    }
