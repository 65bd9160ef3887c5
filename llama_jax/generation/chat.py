"""Conversations: dialogs to answers, and a past that is read once."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from llama_jax.compilation import OPTIONS
from llama_jax.generation.batch import Row, request_of, rows_of, slots_for
from llama_jax.generation.driver import PREFILL_CHUNK, Delta, chunk_of, decoded_rows, grown
from llama_jax.generation.generate import Completion, complete
from llama_jax.generation.loop import Decoding, resume
from llama_jax.generation.prompts import tokenizer_of
from llama_jax.generation.sample import Request
from llama_jax.generation.settings import SamplingSettings, for_each
from llama_jax.model.cache import KVCache
from llama_jax.sharding.arrays import cache_dtype, on_mesh_of, platform_of, replicated, rows_divisor
from llama_jax.tokenizer import Message, Tokenizer
from llama_jax.weights.params import Params

CHUNK = 64
"""Tokens that a turn reads at once on a CPU: one program serves long turns and short, and few are
read for none. An accelerator reads the weights as fast for more."""


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
    (wanted,) = for_each(settings, changes, 1)
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
        (self.settings,) = for_each(settings, changes, 1)
        self.messages: list[Message] = []
        self.forgotten = 0
        """Turns that no longer fit in the context."""
        self.prefilled = 0
        """Tokens that the last turn had to read."""
        self._ids: list[int] = []
        self._cache: KVCache | None = None
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
        (row,) = rows_of(self.params, [ids], [self.settings], 1, self.tokenizer, truncate=False)
        row = dataclasses.replace(row, spelled_after=())
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
        if row.budget == 0:
            yield Delta(0, "", [], None, "length")
            return
        size = rows_divisor(self.params)  # the rows after the first ask for nothing
        request = request_of(self.params.config, [row], size, self.tokenizer)
        request = replicated(self.params, request)
        state = self._prefilled(row, request)
        pause = chunk_of(self.params)
        rows = decoded_rows(self.params, [row], request, state, self.tokenizer, pause)
        for _, delta, state in rows:
            # The newest token is not in the cache yet.
            count = int(state.round.count[0])
            self._cache, self._read = state.cache, len(row.prompt) + count - 1
            yield delta

    def _prefilled(self, row: Row, request: Request) -> Decoding:
        config, ids = self.params.config, row.prompt
        slots, size = slots_for(len(ids), config), len(request.budget)
        cache = self._cache
        if cache is None or cache.k[0].is_deleted():  # an answer was cut short inside a step
            cache = KVCache.empty(config, batch=size, slots=slots, dtype=cache_dtype(self.params))
            cache, self._read = dataclasses.replace(cache, fresh=False), 0
        if cache.slots < slots:
            cache = grown(cache, slots=slots)
        # The last token is read again in any case: its logits are the answer's first.
        read = min(self._read, len(ids) - 1)
        self.prefilled = len(ids) - read
        text = np.zeros((size, cache.slots), np.int32)
        text[0, : len(ids)] = ids
        length, start = np.array([len(ids)] + [1] * (size - 1)), np.array(read)
        with on_mesh_of(self.params):
            return _resume(
                self.params, cache, text, length, start, request, width=_width(self.params)
            )


def _width(params: Params) -> int:
    return CHUNK if platform_of(params) == "cpu" else PREFILL_CHUNK


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


_resume = jax.jit(
    resume, static_argnames="width", donate_argnames="cache", compiler_options=OPTIONS
)
