"""What a tokenizer is to the rest of the house, and the two checks every kind makes."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, SupportsIndex

Message = Mapping[str, Any]
"""One turn of a dialog: `{"role": "user", "content": "a text"}`. A format may know more keys."""
Tools = Sequence[Mapping[str, Any]]
"""Descriptions of functions that a model may call, as JSON schemas."""

Answers = tuple[list[int], list[int]]
"""A dialog's ids, and for each the index of the assistant's message that it is of, or -1."""


class Tokenizer(Protocol):
    """Text to ids and back, for one vocabulary.

    Text never becomes a control token: "<s>" or "<|eot_id|>" in it is encoded as the characters
    it is made of. And a control token never becomes text: it adds no bytes. `decode` is defined for
    any ids there are, whatever bytes they make; an id that spells nothing, as those above
    `vocab_size`, adds no text.
    """

    bos_id: int
    eos_id: int
    stop_ids: tuple[int, ...]
    """The tokens that end a completion; `eos_id` is the first."""
    vocab_size: int
    special: Mapping[str, int]
    """The id of each control token, by name."""

    def encode(self, text: str, *, bos: bool, eos: bool) -> list[int]:
        """The ids of `text`, between a `bos_id` and an `eos_id` where asked for."""
        ...

    def encode_batch(
        self, texts: Sequence[str], *, bos: bool, eos: bool, threads: int
    ) -> list[list[int]]:
        """What `encode` makes of each of many texts, by several threads."""
        ...

    def encode_dialog(
        self, messages: Sequence[Message], *, tools: Tools | None = None
    ) -> list[int]:
        """The ids of a dialog in the format the model was trained on, up to where it answers.

        Bos stands where the format has it: add none. A content that spells a control token stays
        text, or is refused. A format that does not write `tools` refuses them.
        """
        ...

    def encode_answers(self, messages: Sequence[Message]) -> Answers:
        """The ids of a dialog that has its answers, and which of them the assistant wrote.

        An answer's content and the token that ends it are the assistant's, its header is not.
        """
        ...

    def decode(self, ids: Iterable[SupportsIndex]) -> str:
        """The text of `ids`; bytes that are not UTF-8 become U+FFFD."""
        ...

    def token_bytes(self, id: SupportsIndex, *, at_start: bool) -> tuple[bytes, bool]:
        """The bytes that one token adds to a text, and whether the next is still at its start.

        A text begins `at_start`, and a control token leaves it there; SentencePiece drops the
        space that follows.
        """
        ...


def check_text(text: str) -> None:
    """Raises ValueError unless `text` is a str that UTF-8 can hold."""
    if not isinstance(text, str):
        raise ValueError(f"text must be a str, not {type(text).__name__}; decode bytes first")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"text has the lone surrogate {text[error.start]!r} at position {error.start}, which "
            "is no character; replace it, say by text.encode(errors='replace').decode()"
        ) from None


def check_id(id: SupportsIndex) -> int:
    """`id` as an int; ValueError where it is negative.

    A model may have more rows than its tokenizer has tokens, and write an id of those: one that
    spells nothing adds no text.
    """
    index = operator.index(id)
    if index < 0:
        raise ValueError(f"id {index} is no token; ids count from 0")
    return index
