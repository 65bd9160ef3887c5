"""Prompts as arrays: grouped by length, padded to buckets, with their settings.

Three prompts of 5, 20 and 7 tokens become one batch: prompts int32[4, 32] padded on the right,
lengths [20, 7, 5, 1], settings of 4 rows. The fourth row is padding that asks for no token.
"""

from __future__ import annotations

import dataclasses
import math
import secrets
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from llama_jax.config import Config, check_count
from llama_jax.distributed import from_first
from llama_jax.generation.constraint import Constraint, constraint_for
from llama_jax.generation.grammar import JSONSchema
from llama_jax.generation.guide import Guide, allowed_words
from llama_jax.generation.limits import (
    MAX_CACHE_BYTES,
    MAX_ROWS,
    bucket,
    initial_slots,
    power_of_two,
)
from llama_jax.generation.placement import Placement
from llama_jax.generation.prompts import Prompt, encode, is_dialog
from llama_jax.generation.sample import BatchSettings
from llama_jax.generation.settings import ON_DEVICE, SamplingSettings
from llama_jax.generation.stops import check_leaves_a_token, ended_by_turn, stop_ids_of
from llama_jax.tokenizer import Tokenizer, Tools


@dataclasses.dataclass(frozen=True)
class Row:
    """One completion to be made."""

    index: int
    """Its place among all that were asked for."""
    prompt: list[int]
    settings: SamplingSettings
    context_ids: Sequence[int]
    """The ids that its text continues: the prompt, or none where the text stands alone."""
    max_new_tokens: int
    """What its settings allow, or the room left in the context if that is less."""
    stop_ids: tuple[int, ...]
    constraint: Constraint | None = None
    """What the completion may be; each `guide` works on a copy."""

    def guide(self) -> Guide | None:
        """The constraint at the completion's beginning."""
        if self.constraint is None:
            return None
        return Guide(self.constraint, self.settings, self.stop_ids)


class Form(NamedTuple):
    """The form of completions that `generate` was asked for: one of these, or none."""

    json_schema: JSONSchema | None
    regex: str | None
    grammar: str | None


@dataclasses.dataclass(frozen=True)
class Batch:
    """Rows that are decoded together, with the arrays that the device takes."""

    rows: list[Row]
    prompts: np.ndarray
    """int32[batch, time], padded on the right. The rows after `rows` are padding too."""
    lengths: np.ndarray
    """int32[batch]"""
    settings: BatchSettings
    slots: int
    """Slots of the new cache."""


def rows_of(
    config: Config,
    prompts: Sequence[Prompt],
    settings: Sequence[SamplingSettings],
    n: int,
    tokenizer: Tokenizer | None,
    truncate: bool,
    tools: Sequence[Tools | None] | None = None,
) -> list[Row]:
    """One row per completion: `n` of each prompt; completion j has the settings' seed + j.

    `tools` are those of each prompt, which is then a dialog.
    """
    check_count("n", n)
    each = [None] * len(prompts) if tools is None else tools
    found: list[Row] = []
    stops: dict[Any, tuple[int, ...]] = {}  # mostly one for all prompts
    drawn = _drawn_seeds(settings)
    for i, (prompt, wanted, told) in enumerate(zip(prompts, settings, each, strict=True)):
        ids = encode(config, prompt, i, tokenizer, truncate, told)
        if tokenizer is not None and is_dialog(prompt):
            wanted = ended_by_turn(tokenizer, prompt, wanted, told)
        given = wanted.stop, wanted.stop_ids
        if given not in stops:
            stops[given] = stop_ids_of(config, wanted, tokenizer)
        stop_ids = stops[given]
        seed = drawn[i] if wanted.seed is None else int(wanted.seed)
        check_leaves_a_token(config, wanted, stop_ids)
        room = min(wanted.max_new_tokens, config.max_seq_len - len(ids))
        context = () if is_dialog(prompt) else ids  # an answer to a dialog stands alone
        for j in range(n):
            seeded = wanted.replace(seed=(seed + j) % 2**32)
            found.append(Row(len(found), ids, seeded, context, room, stop_ids))
    return found


def constrained(
    rows: Sequence[Row], vocab_size: int, tokenizer: Tokenizer | None, form: Form
) -> list[Row]:
    """The rows, each under a constraint of this form, if there is one."""
    given = {name: value for name, value in form._asdict().items() if value is not None}
    if not given:
        return list(rows)
    if tokenizer is None:
        raise ValueError(
            f"{next(iter(given))} says what a text may be, and these params have no tokenizer; "
            "pass tokenizer=llama_jax.load_tokenizer(path)"
        )

    def under(row: Row) -> Row:
        ends, before = row.stop_ids, row.context_ids
        made = constraint_for(tokenizer, vocab_size, **given, stop_ids=ends, after=before)
        return dataclasses.replace(row, constraint=made)

    return [under(row) for row in rows]


def _drawn_seeds(settings: Sequence[SamplingSettings]) -> list[int]:
    """A new seed for each prompt, the same in all processes; none is drawn if none is wanted."""
    if all(one.seed is not None for one in settings):
        return []
    return from_first(lambda: [secrets.randbits(32) for _ in settings])


def batches_of(config: Config, place: Placement, rows: Sequence[Row]) -> Iterator[Batch]:
    """The rows in batches of like length, the longest first, so that memory runs out early."""
    for group in grouped(config, place, rows):
        yield _batch(config, place, group)


def grouped(config: Config, place: Placement, rows: Sequence[Row]) -> Iterator[list[Row]]:
    """The rows of each batch."""
    waiting = sorted(rows, key=lambda row: (-len(row.prompt), -row.max_new_tokens))
    while waiting:
        longest = max(len(row.prompt) + row.max_new_tokens for row in waiting[:MAX_ROWS])
        size = rows_at_once(config, place, min(bucket(longest), config.max_seq_len))
        yield waiting[:size]
        waiting = waiting[size:]


def rows_at_once(config: Config, place: Placement, slots: int) -> int:
    """How many rows a batch may have, a power of two, for the size of their cache."""
    kept = {"slots": slots, "dtype": place.cache_dtype}
    size = 1
    while size < MAX_ROWS:
        if place.cache.bytes(config, batch=2 * size, **kept) > MAX_CACHE_BYTES:
            break
        size *= 2
    return size


def padded_length(config: Config, rows: Sequence[Row]) -> int:
    """The prompts' length in a batch of these rows."""
    return min(bucket(max(len(row.prompt) for row in rows)), config.max_seq_len)


def padded_rows(place: Placement, count: int) -> int:
    """How many rows a batch of `count` has: a power of two, and as many on every device."""
    return math.ceil(power_of_two(count) / place.batch_divisor) * place.batch_divisor


def batch_settings(config: Config, rows: Sequence[Row], size: int) -> BatchSettings:
    """The rows' settings as NumPy arrays for a batch of `size`; padding has neutral values."""

    def padded(values: Sequence[Any], dtype: Any, neutral: float = 0) -> Any:
        return np.array([*values, *[neutral] * (size - len(values))], dtype)

    stops: Any = np.zeros((size, config.vocab_size), bool)
    for mask, row in zip(stops, rows, strict=False):
        # An id beyond the vocabulary, a tokenizer's say, is never met.
        mask[[id for id in row.stop_ids if 0 <= id < config.vocab_size]] = True
    numbers = {}
    for name, field in ON_DEVICE.items():
        values = [getattr(row.settings, name) for row in rows]
        if name == "top_k":  # a larger one keeps all, and may be no int32
            values = [min(value, config.vocab_size) for value in values]
        numbers[name] = padded(values, field.metadata["on_device"], field.metadata["neutral"])
    least = [min(row.settings.min_new_tokens, row.max_new_tokens) for row in rows]
    guides = [row.guide() for row in rows]
    most = [
        0 if guide is not None and guide.over else row.max_new_tokens
        for row, guide in zip(rows, guides, strict=True)
    ]
    return BatchSettings(
        numbers=numbers,
        bias=_bias(config, rows, size),
        stop_id_mask=stops,
        min_new_tokens=padded(least, np.int32),
        max_new_tokens=padded(most, np.int32),
        logprobs=np.array(any(row.settings.logprobs is not None for row in rows)),  # type: ignore[arg-type]
        allowed=allowed_words(guides, size, config.vocab_size),  # type: ignore[arg-type]
    )


def _batch(config: Config, place: Placement, rows: list[Row]) -> Batch:
    slots = initial_slots(max(len(row.prompt) for row in rows), config.max_seq_len)
    time = padded_length(config, rows)
    size = padded_rows(place, len(rows))
    prompts = np.zeros((size, time), np.int32)
    for padded, row in zip(prompts, rows, strict=False):
        padded[: len(row.prompt)] = row.prompt
    lengths = np.ones(size, np.int32)
    lengths[: len(rows)] = [len(row.prompt) for row in rows]
    return Batch(rows, prompts, lengths, place.put(batch_settings(config, rows, size)), slots)


def _bias(config: Config, rows: Sequence[Row], size: int) -> Any:
    table = np.zeros((size, config.vocab_size), np.float32)
    for values, row in zip(table, rows, strict=False):
        given = {**row.settings.logit_bias, **dict.fromkeys(row.settings.forbidden_ids, -np.inf)}
        values[list(given)] = list(given.values())
    return table
