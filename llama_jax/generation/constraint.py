"""What a completion may be, token by token: `constraint_for` makes it of a schema or a regex."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from llama_jax.generation.grammar import JSONSchema, grammar_of
from llama_jax.generation.masks import words_of
from llama_jax.generation.token_table import TokenTable, table_of
from llama_jax.tokenizer import Tokenizer


class Constraint(Protocol):
    """What a completion may be. Each completion works on a `copy()` of its own."""

    def copy(self) -> Constraint:
        """The same, at the same place of its text."""
        ...

    def mask(self) -> np.ndarray:
        """uint32[ceil(vocab_size / 32)]: id i may come next where bit i % 32 of word i // 32 is 1.

        Stop ids are among them exactly where the text may end. ValueError where no token can
        follow and the text may not end.
        """
        ...

    def take(self, token: int) -> None:
        """Goes on by the token that was drawn; ValueError where the mask did not allow it."""
        ...


def constraint_for(
    tokenizer: Tokenizer,
    vocab_size: int,
    *,
    json_schema: JSONSchema | None = None,
    json_object: bool = False,
    regex: str | None = None,
    grammar: str | None = None,
    stop_ids: Sequence[int] | None = None,
    after: Sequence[int] | None = None,
) -> Constraint:
    """A completion that is JSON of a schema, or any JSON object, matches a regex, or a grammar.

    `vocab_size` is the model's. A `regex` is one of Rust's (no back-references, no looking around)
    and matches the whole text. A `grammar` is one of llguidance's, in Lark's notation. `stop_ids`
    are the tokenizer's unless given. `after` are the ids that the text continues, () for an answer
    to a dialog, which stands alone. It matters because a tokenizer may drop a text's first space.
    Where `after` is None the first token must be one that adds the same bytes in either case.

    The first constraint of a tokenizer takes a second or so, the first of a grammar a tenth, and
    the same grammar again next to nothing.

    ValueError where what is given is wrong, above 64 KB, or takes more than a second to compile;
    ImportError where llguidance, the extra `grammar`, is not installed.
    """
    if json_object:
        if json_schema is not None:
            raise ValueError("json_object says that any object will do; leave out json_schema")
        json_schema = {"type": "object"}
    text = grammar_of(json_schema, regex, grammar)
    table = table_of(tokenizer, vocab_size)
    ends = tokenizer.stop_ids if stop_ids is None else stop_ids
    first = None if after is None else _at_start(tokenizer, after)
    return _Followed(table, table.matcher(text), frozenset(ends), first)


_UNSPELLABLE = (
    "the text cannot go on as the schema, regex or grammar asks: no token of the vocabulary spells "
    "what comes next"
)


class _Followed:
    """A constraint by llguidance."""

    def __init__(
        self, table: TokenTable, matcher: Any, stop_ids: frozenset[int], first: bool | None
    ) -> None:
        self._table, self._matcher, self._stop_ids = table, matcher, stop_ids
        self._first = first
        """Whether the next token is a text's first; None where nobody knows."""
        stops = np.zeros(table.vocab_size, bool)
        stops[[id for id in stop_ids if 0 <= id < table.vocab_size]] = True
        self._stops = words_of(stops)

    def copy(self) -> _Followed:
        return _Followed(self._table, self._matcher.deep_copy(), self._stop_ids, self._first)

    def mask(self) -> np.ndarray:
        allowed = self._table.allowed(self._matcher, first=self._first is True)
        if self._first is None:
            allowed &= self._table.same
        allowed &= ~self._stops
        if self._matcher.is_accepting():
            return allowed | self._stops
        self._check()
        if not allowed.any():
            raise ValueError(_UNSPELLABLE)
        return allowed

    def take(self, token: int) -> None:
        if token in self._stop_ids:
            return
        ids = [self._table.id_of(token, first=self._first is True)]
        if self._matcher.try_consume_tokens(ids) != 1:
            self._check()
            raise ValueError(f"token {token} does not follow the schema, regex or grammar")
        self._first = False

    def _check(self) -> None:
        """ValueError where llguidance cannot go on."""
        if not self._matcher.is_error():
            return
        reason = self._matcher.get_error().split("\n")[0][:60]
        if reason.startswith("NoExtension"):
            raise ValueError(_UNSPELLABLE)
        raise ValueError(
            f"the schema, regex or grammar takes too much work to follow ({reason}); "
            "make it simpler"
        )


def _at_start(tokenizer: Tokenizer, after: Sequence[int]) -> bool:
    """Whether a text that continues these ids is at its start still."""
    return all(tokenizer.token_bytes(id, at_start=True)[1] for id in after)
