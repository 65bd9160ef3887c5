"""Dialogs: an answer to one, and a conversation whose past is read once."""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Generator, Iterator, Sequence
from typing import Any

from llama_jax.generation.asked import Asked
from llama_jax.generation.batch import Form, Row, batch_settings, constrained, rows_of
from llama_jax.generation.completed import completed, in_order
from llama_jax.generation.driver import RowWriter, compile_ahead, decode_rows, grow
from llama_jax.generation.grammar import JSONSchema
from llama_jax.generation.limits import answer_room, initial_slots
from llama_jax.generation.one_thread import OneThread
from llama_jax.generation.placement import Placement
from llama_jax.generation.prompts import encode_dialog, tokenizer_of
from llama_jax.generation.results import Completion, Delta
from llama_jax.generation.sample import BatchSettings
from llama_jax.generation.settings import SamplingSettings, for_each
from llama_jax.generation.state import DecodeState, is_deleted
from llama_jax.generation.stops import ended_by_turn
from llama_jax.generation.turn import empty_cache, turn_of
from llama_jax.model.cache import Cache, KVCache
from llama_jax.tokenizer import Message, Tokenizer, Tools
from llama_jax.weights.params import Params


def chat(
    params: Params,
    messages: Sequence[Message],
    settings: SamplingSettings | None = None,
    *,
    tools: Tools | None = None,
    tokenizer: Tokenizer | None = None,
    cache: type[Cache] = KVCache,
    json_schema: JSONSchema | None = None,
    regex: str | None = None,
    grammar: str | None = None,
    **changes: Any,
) -> Completion:
    """The assistant's answer to a dialog: `.text` is its next content.

    Settings are those of `generate`, and so are `tools`, `json_schema`, `regex` and `grammar`. For
    a conversation of several turns see `Conversation`, which reads each message once.
    """
    tokenizer = _needed(params, tokenizer)
    (wanted,) = for_each(settings, changes, 1)
    ids = encode_dialog(tokenizer, messages, tools)
    row = _row(params, tokenizer, messages, tools, ids, wanted)
    form = Form(json_schema, regex, grammar)
    rows = constrained([row], params.config.vocab_size, tokenizer, form)
    asked = Asked(rows, Placement.of(params, cache), tokenizer)
    (done,) = in_order(list(completed(params, asked)))
    return done


class Conversation:
    """A dialog in progress, with its keys and values: a turn reads only what is new.

    `messages` is the dialog, and all that the model sees: each turn reads what the model's format
    makes of it, from the first token that differs from what was read before. It may be edited
    between two answers. Where the context is full, the oldest turns are forgotten. It is one
    thread's at a time: a second one that asks during an answer gets a ValueError.
    """

    def __init__(
        self,
        params: Params,
        *,
        system: str | None = None,
        tools: Tools | None = None,
        settings: SamplingSettings | None = None,
        tokenizer: Tokenizer | None = None,
        cache: type[Cache] = KVCache,
        **changes: Any,
    ) -> None:
        self.params = params
        self._place = Placement.of(params, cache)
        self.tokenizer = _needed(params, tokenizer)
        (self.settings,) = for_each(settings, changes, 1)
        self.tools = tools
        """Descriptions of functions that the model may call."""
        self.messages: list[Message] = []
        """The dialog so far."""
        self.forgotten = 0
        """Turns that no longer fit in the context."""
        self.prefilled = 0
        """Tokens that the last turn had to read."""
        self._turn = OneThread()
        self._ids: list[int] = []  # the last turn's: what was read, and what was written then
        self.cache: Any = None
        """The keys and values of what was read; None before the first turn."""
        self._read = 0  # how many of the ids have their keys and values in the cache
        self._compiled: set[int] = set()  # slots of the caches whose programs are compiled
        self.reset(system)

    @property
    def ids(self) -> list[int]:
        """What the model has read and written: the last turn's prompt and its answer."""
        return list(self._ids)

    def reset(self, system: str | None = None) -> None:
        """Forgets every turn, and begins again under another system message, or none."""
        self.messages = [] if system is None else [{"role": "system", "content": system}]
        self.forgotten = 0
        self._remember([])

    def undo(self) -> Message | None:
        """Takes the last user's message and all after it out of the dialog, and returns it."""
        asked = [i for i, message in enumerate(self.messages) if message.get("role") == "user"]
        if not asked:
            return None
        question = self.messages[asked[-1]]
        del self.messages[asked[-1] :]
        return question

    def ask(self, content: str) -> Generator[Delta, None, None]:
        """Yields the answer to a user's message as it comes; it joins the dialog when it ends.

        An answer that is not taken to its end (the iterator is closed, or Ctrl-C) joins the dialog
        as far as it came.
        """
        asked = {"role": "user", "content": content}
        yield from self._turn.alone(self._answer_to([*self.messages, asked]))

    def answer(self) -> Generator[Delta, None, None]:
        """Yields an answer to the dialog as it is, say after a tool's result was appended."""
        yield from self._turn.alone(self._answer_to(list(self.messages)))

    def _answer_to(self, dialog: list[Message]) -> Generator[Delta, None, None]:
        messages, ids = self._fitted(dialog)
        row = _row(self.params, self.tokenizer, messages, self.tools, ids, self.settings)
        self.forgotten += _turns(dialog) - _turns(messages)
        text, end = "", None
        self._remember(ids)
        self.messages, written = messages, self._ids
        try:
            for delta in self._decoded(row, written):
                text, end = text + delta.text, delta.stop_token
                written += delta.tokens
                yield delta
        finally:
            messages.append(_said(self.tokenizer, text, written[len(ids) :], end))

    def _remember(self, ids: Sequence[int]) -> None:
        """Makes `ids` the dialog's; the cache still serves as far as they begin like the last."""
        self._read = _shared(self._ids[: self._read], ids)  # true of either, whatever interrupts
        self._ids = list(ids)

    def _fitted(self, messages: list[Message]) -> tuple[list[Message], list[int]]:
        """A dialog without so many of its oldest turns that an answer has room, and its ids."""
        limit = self.params.config.max_seq_len
        room = answer_room(self.settings.max_new_tokens, limit)
        ids = encode_dialog(self.tokenizer, messages, self.tools)
        while len(ids) + room > limit and _turns(messages) > 1:
            first, second, *_ = [i for i, m in enumerate(messages) if m["role"] == "user"]
            messages = messages[:first] + messages[second:]
            ids = encode_dialog(self.tokenizer, messages, self.tools)
        if len(ids) > limit:
            raise ValueError(
                f"the message makes a dialog of {len(ids)} tokens and the context ends at "
                f"max_seq_len={limit}; shorten the message, or the system message"
            )
        return messages, ids

    def _decoded(self, row: Row, ids: list[int]) -> Iterator[Delta]:
        size = self._place.batch_divisor  # the rows after the first ask for nothing
        settings = self._place.put(batch_settings(self.params.config, [row], size))
        read = functools.partial(self._prefilled, row, settings)
        writers = [RowWriter(row, self.tokenizer)]
        asked = self.params, self._place, writers, settings, read
        for _, delta, after in decode_rows(*asked, stream=True):
            # No other turn has begun, nor has the dialog been reset. The newest token has no slot.
            if after is not None and self._ids is ids:
                count = int(after.buffer.count[0])
                self.cache, self._read = after.cache, len(row.prompt) + count - 1
            yield delta

    def _prefilled(self, row: Row, settings: BatchSettings) -> DecodeState:
        place, ids, cache = self._place, row.prompt, self.cache
        slots = initial_slots(len(ids), self.params.config.max_seq_len)
        if cache is None or is_deleted(cache):  # an answer was cut short inside a step
            cache, self._read = empty_cache(self.params, place, slots), 0
        elif cache.slots < slots:
            cache = grow(place, cache, slots)
        # The last token is read again in any case: its logits are the answer's first.
        read = min(self._read, len(ids) - 1)
        self.prefilled = len(ids) - read
        turn = turn_of(self.params, place, cache, ids, read, settings)
        if place.mesh is None and cache.slots not in self._compiled:
            # Both programs, or the answer would pause between. Over a mesh it does: what `prefill`
            # says of its outputs' shardings ahead is not yet what `decode` is compiled for.
            collections.deque(compile_ahead(place, turn), maxlen=0)
            self._compiled.add(cache.slots)
        return turn.run()


def _row(
    params: Params,
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    tools: Tools | None,
    ids: list[int],
    settings: SamplingSettings,
) -> Row:
    """The answer to a dialog as a row: its text stands alone, the format's own token ends it."""
    settings = ended_by_turn(tokenizer, messages, settings, tools)
    (row,) = rows_of(params.config, [ids], [settings], 1, tokenizer, truncate=False)
    return dataclasses.replace(row, context_ids=())


def _said(tokenizer: Tokenizer, text: str, tokens: Sequence[int], end: int | None) -> Message:
    """An answer as a message, which a format may write with more keys than the content."""
    more = getattr(tokenizer, "answer_keys", None)
    return {"role": "assistant", "content": text, **(more(tokens, end) if more else {})}


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
