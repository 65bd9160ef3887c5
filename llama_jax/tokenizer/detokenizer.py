"""Ids to text, one at a time or all at once, by the same rule."""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from typing import SupportsIndex

from llama_jax.tokenizer.protocol import Tokenizer


class Detokenizer:
    """The text of a stream of ids, given out as soon as it is certain.

    `after` is what the stream continues: after "Once upon a time" the token " there" keeps its
    space, after nothing (or bos alone) SentencePiece drops it. Whatever the ids, the pieces
    join to `detokenize(tokenizer, ids, after)`.
    """

    def __init__(self, tokenizer: Tokenizer, after: Iterable[SupportsIndex] = ()) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._at_start = all(tokenizer.token_bytes(id, at_start=True)[1] for id in after)

    def push(self, id: SupportsIndex) -> str:
        """The text that `id` makes certain: "" while a character lacks bytes, never half of one."""
        added, self._at_start = self._tokenizer.token_bytes(id, at_start=self._at_start)
        return self._utf8.decode(added)

    def finish(self) -> str:
        """What is left when the stream ends: U+FFFD for a character that never got its bytes."""
        return self._utf8.decode(b"", final=True)


def detokenize(
    tokenizer: Tokenizer, ids: Iterable[SupportsIndex], after: Iterable[SupportsIndex] = ()
) -> str:
    """The text of `ids` where they continue `after`: of a completion, given its prompt.

    `decode(prompt + completion)` is `decode(prompt)` and then this, unless the prompt's bytes
    stop inside a character.
    """
    if not isinstance(ids, Iterable):
        raise TypeError(f"ids={ids!r:.60} is no list of token ids; pass [id, ...]")
    stream = Detokenizer(tokenizer, after)
    return "".join([stream.push(id) for id in ids]) + stream.finish()
