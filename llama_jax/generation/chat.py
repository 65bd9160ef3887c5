"""Dialogs: an answer to one, and a conversation whose past is read once."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from llama_jax.generation.batch import Row, batch_settings, rows_of
from llama_jax.generation.driver import RowWriter, decode_rows, grow, prefill
from llama_jax.generation.generate import complete
from llama_jax.generation.limits import initial_slots, limits_on
from llama_jax.generation.prompts import tokenizer_of
from llama_jax.generation.results import Completion, Delta
from llama_jax.generation.sample import BatchSettings
from llama_jax.generation.settings import SamplingSettings, for_each
from llama_jax.generation.state import DecodeState
from llama_jax.model.cache import Cache, KVCache
from llama_jax.model.placement import Placement
from llama_jax.tokenizer import Message, Tokenizer
from llama_jax.weights.params import Params


def chat(
    params: Params,
    messages: Sequence[Message],
    settings: SamplingSettings | None = None,
    *,
    tokenizer: Tokenizer | None = None,
    cache: type[Cache] = KVCache,
    **changes: Any,
) -> Completion:
    """The assistant's answer to a dialog that ends with its user: `.text` is its next content.

    Settings are those of `generate`. For a conversation of several turns see `Conversation`,
    which reads each message once.
    """
    tokenizer = _needed(params, tokenizer)
    (wanted,) = for_each(settings, changes, 1)
    ids = tokenizer.encode_dialog(messages)
    (row,) = rows_of(params.config, [ids], [wanted], 1, tokenizer, truncate=False)
    row = dataclasses.replace(row, context_ids=())
    (done,) = complete(params, Placement.of(params, cache), [row], tokenizer)
    return done


class Conversation:
    """A dialog in progress, with its keys and values: a turn reads only what is new.

    Host state, changed by `ask`. Where the context is full, the oldest turns are forgotten.
    """

    def __init__(
        self,
        params: Params,
        *,
        system: str | None = None,
        settings: SamplingSettings | None = None,
        tokenizer: Tokenizer | None = None,
        cache: type[Cache] = KVCache,
        **changes: Any,
    ) -> None:
        self.params = params
        self._place = Placement.of(params, cache)
        self.tokenizer = _needed(params, tokenizer)
        (self.settings,) = for_each(settings, changes, 1)
        self.messages: list[Message] = []
        self.forgotten = 0
        """Turns that no longer fit in the context."""
        self.prefilled = 0
        """Tokens that the last turn had to read."""
        self._ids: list[int] = []
        self._cache: Any = None
        self._read = 0  # how many of the ids have their keys and values in the cache
        self.reset(system)

    def reset(self, system: str | None = None) -> None:
        """Forgets every turn, and begins again under another system message, or none."""
        self.messages = [] if system is None else [{"role": "system", "content": system}]
        self.forgotten = 0
        self._remember([])

    def ask(self, content: str) -> Generator[Delta, None, None]:
        """Yields the answer to a user's message as it comes; it joins the dialog when it ends.

        An answer that is not taken to its end (the iterator is closed, or Ctrl-C) joins the dialog
        as far as it came.
        """
        messages, ids = self._fitted([*self.messages, {"role": "user", "content": content}])
        (row,) = rows_of(
            self.params.config, [ids], [self.settings], 1, self.tokenizer, truncate=False
        )
        row = dataclasses.replace(row, context_ids=())
        self.forgotten += _turns(self.messages) + 1 - _turns(messages)
        text = ""
        self._remember(ids)
        self.messages = messages
        try:
            for delta in self._answer(row):
                text += delta.text
                self._ids += delta.tokens
                yield delta
        finally:
            self.messages.append({"role": "assistant", "content": text})

    def _remember(self, ids: Sequence[int]) -> None:
        """Makes `ids` the dialog's; the cache still serves as far as they begin like the last."""
        self._read = _shared(self._ids[: self._read], ids)  # true of either, whatever interrupts
        self._ids = list(ids)

    def _fitted(self, messages: list[Message]) -> tuple[list[Message], list[int]]:
        """A dialog less its oldest turns until an answer has room, and its ids."""
        limit = self.params.config.max_seq_len
        room = min(self.settings.max_new_tokens, limit // 4, 256)
        ids = self._encoded(messages)
        while len(ids) + room > limit and _turns(messages) > 1:
            first, second, *_ = [i for i, m in enumerate(messages) if m["role"] == "user"]
            messages = messages[:first] + messages[second:]
            ids = self.tokenizer.encode_dialog(messages)
        if len(ids) > limit:
            raise ValueError(
                f"the message makes a dialog of {len(ids)} tokens and the context ends at "
                f"max_seq_len={limit}; shorten the message, or the system message"
            )
        return messages, ids

    def _encoded(self, messages: list[Message]) -> list[int]:
        """The dialog's ids; what the model wrote stays as it wrote it, token for token.

        What a format puts after an answer is what two encodings that differ in it end with.
        """
        if not self._ids:
            return self.tokenizer.encode_dialog(messages)
        *_, answer, question = messages
        before = {"role": "user", "content": "yes or no"}
        one, other = (
            self.tokenizer.encode_dialog([before, {**answer, "content": word}, question])
            for word in ("yes", "no")
        )
        tail = _shared(one[::-1], other[::-1])
        return [*self._ids, *one[len(one) - tail :]]

    def _answer(self, row: Row) -> Iterator[Delta]:
        if row.max_new_tokens == 0:
            yield Delta(0, "", [], None, "length")
            return
        size = self._place.batch_divisor  # the rows after the first ask for nothing
        settings = self._place.put(batch_settings(self.params.config, [row], size))
        state = self._prefilled(row, settings)
        writers = [RowWriter(row, self.tokenizer)]
        for _, delta, after in decode_rows(
            self.params, self._place, writers, settings, state, stream=True
        ):
            # The newest token is not in the cache yet.
            count = int(after.buffer.count[0])
            self._cache, self._read = after.cache, len(row.prompt) + count - 1
            yield delta

    def _prefilled(self, row: Row, settings: BatchSettings) -> DecodeState:
        config, place, ids = self.params.config, self._place, row.prompt
        slots, size = initial_slots(len(ids), config.max_seq_len), place.batch_divisor
        cache = self._cache
        if cache is None or _is_deleted(cache):  # an answer was cut short inside a step
            empty = place.cache.empty(config, batch=size, slots=slots, dtype=place.cache_dtype)
            cache, self._read = empty.continued(), 0
        if cache.slots < slots:
            cache = grow(place, cache, slots)
        # The last token is read again in any case: its logits are the answer's first.
        read = min(self._read, len(ids) - 1)
        self.prefilled = len(ids) - read
        text = np.zeros((size, cache.slots), np.int32)
        text[0, : len(ids)] = ids
        lengths = np.array([len(ids)] + [1] * (size - 1), np.int32)
        with place.use_mesh():
            return prefill(
                self.params,
                cache,
                text,
                lengths,
                np.int32(read),
                settings,
                tokens_per_read=limits_on(place.platform).turn_tokens,
            )


def _is_deleted(cache: Any) -> bool:
    """Whether a program was given the cache's memory and did not return."""
    return any(leaf.is_deleted() for leaf in jax.tree.leaves(cache))


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many elements two sequences begin with alike."""
    return next(
        (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b),
        min(len(one), len(other)),
    )


def _needed(params: Params, tokenizer: Tokenizer | None) -> Tokenizer:
    found = tokenizer_of(params, tokenizer)
    if found is None:
        raise ValueError(
            "these params have no tokenizer, and a dialog is text; "
            "pass tokenizer=llama_jax.load_tokenizer(path)"
        )
    return found


def _turns(messages: Sequence[Message]) -> int:
    return sum(message["role"] == "user" for message in messages)
