"""Conversations: dialogs to answers, and a past that is read once."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llama_jax.batches import Row, bucket, encode, request_of, rows_of, tokenizer_of
from llama_jax.cache import KVCache
from llama_jax.generate import Completion, Delta, chunk_of, complete, decoded_rows
from llama_jax.params import Params
from llama_jax.sample import Decoding, Request, resume
from llama_jax.settings import SamplingSettings, for_each
from llama_jax.sharding import on_mesh_of
from llama_jax.tokenizer import Tokenizer

Message = Mapping[str, Any]
"""{"role": "user", "content": "hello"}; `Tokenizer.encode_dialog` says more."""


def chat(
    params: Params,
    messages: Sequence[Message],
    settings: SamplingSettings | None = None,
    *,
    tokenizer: Tokenizer | None = None,
    **changes: Any,
) -> Completion:
    """The assistant's answer to a dialog that ends with its user: `.text` is its next content.

    Settings are those of `generate`. For a conversation of several turns see `Conversation`,
    which reads each message once.
    """
    tokenizer = _needed(params, tokenizer)
    (wanted,) = for_each(settings or SamplingSettings(), changes, 1)
    ids = tokenizer.encode_dialog(messages)
    (row,) = rows_of(params, [ids], [wanted], 1, tokenizer, truncate=False)
    (done,) = complete(params, [dataclasses.replace(row, spelled_after=())], tokenizer)
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
        **changes: Any,
    ) -> None:
        self.params = params
        self.tokenizer = _needed(params, tokenizer)
        (self.settings,) = for_each(settings or SamplingSettings(), changes, 1)
        self.messages: list[Message] = []
        self.forgotten = 0
        """Turns that no longer fit in the context."""
        self.prefilled = 0
        """Tokens that the last turn had to read."""
        self._ids: list[int] = []
        self._cache: KVCache | None = None
        self._read = 0
        self.reset(system)

    def reset(self, system: str | None = None) -> None:
        """Forgets every turn, and begins again under another system message, or none."""
        self.messages = [] if system is None else [{"role": "system", "content": system}]
        self.forgotten = 0
        self._ids, self._read = [], 0

    def ask(self, content: str) -> Iterator[Delta]:
        """Yields the answer to a user's message as it comes; it joins the dialog when it ends.

        An answer that is not taken to its end (the iterator is closed, or Ctrl-C) joins the dialog
        as far as it came.
        """
        self.messages.append({"role": "user", "content": content})
        try:
            ids = self._fitted()
        except ValueError:
            self.messages.pop()
            raise
        text, tokens = "", []
        try:
            for delta in self._answer(ids):
                text += delta.text
                tokens += delta.tokens
                yield delta
        finally:
            self.messages.append({"role": "assistant", "content": text})
            self._ids = [*ids, *tokens]

    def _fitted(self) -> list[int]:
        """The dialog's ids, with the oldest turns dropped until an answer has room."""
        limit = self.params.config.max_seq_len
        room = min(self.settings.max_new_tokens, limit // 4, 256)
        while True:
            ids = self._encoded()
            turns = [i for i, m in enumerate(self.messages) if m["role"] == "user"]
            if len(ids) + room <= limit or len(turns) == 1:
                return encode(self.params.config, ids, 0, self.tokenizer)
            del self.messages[turns[0] : turns[1]]
            self.forgotten += 1
            self._ids = []

    def _encoded(self) -> list[int]:
        """The dialog's ids; what the model wrote stays as it wrote it, token for token.

        What a format puts after an answer is what two encodings that differ in it end with.
        """
        if not self._ids:
            return self.tokenizer.encode_dialog(self.messages)
        *before, answer, question = self.messages
        one, other = (
            self.tokenizer.encode_dialog([*before, {**answer, "content": word}, question])
            for word in ("yes", "no")
        )
        tail = _shared(one[::-1], other[::-1])
        return [*self._ids, *one[len(one) - tail :]]

    def _answer(self, ids: list[int]) -> Iterator[Delta]:
        (row,) = rows_of(self.params, [ids], [self.settings], 1, self.tokenizer, truncate=False)
        row = dataclasses.replace(row, spelled_after=())
        if row.budget == 0:
            yield Delta(0, "", [], None, "length")
            return
        request = request_of(self.params.config, [row], 1)
        state = self._prefilled(row, request)
        pause = chunk_of(self.params)
        rows = decoded_rows(self.params, [row], request, state, self.tokenizer, pause)
        for _, delta, state in rows:
            # The newest token is not in the cache yet.
            self._cache, self._read = state.cache, len(ids) + int(state.count[0]) - 1
            yield delta

    def _prefilled(self, row: Row, request: Request) -> Decoding:
        config, ids, room = self.params.config, row.prompt, bucket(row.budget)
        time = min(bucket(len(ids)), config.max_seq_len)
        slots = min(bucket(time + room), config.max_seq_len)
        cache = self._cache
        if cache is None or cache.k[0].is_deleted():  # an answer was cut short inside a step
            cache = KVCache.empty(config, batch=1, slots=slots, dtype=self.params.dtype)
            cache, self._read = dataclasses.replace(cache, fresh=False), 0
        if cache.slots < slots:
            cache = cache.grown(slots)
        # The last token is read again in any case: its logits are the answer's first.
        read = min(_shared(self._ids[: self._read], ids), len(ids) - 1)
        self.prefilled = len(ids) - read
        text = np.zeros((1, time), np.int32)
        text[0, : len(ids)] = ids
        spans = jnp.array([len(ids)]), jnp.array(read)
        with on_mesh_of(self.params):
            return _resume(self.params, cache, text, *spans, request, room=room)


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


_resume = jax.jit(resume, static_argnames="room", donate_argnames="cache")
