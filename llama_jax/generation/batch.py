"""Prompts as the device takes them: grouped by length, padded to buckets, settings as arrays."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from llama_jax.config import Config, check_count
from llama_jax.generation.prompts import Prompt, encode
from llama_jax.generation.sample import Request
from llama_jax.generation.settings import SamplingSettings
from llama_jax.generation.stop_strings import power_of_two, stop_strings
from llama_jax.sharding.arrays import cache_dtype, replicated, rows_divisor
from llama_jax.tokenizer import Tokenizer
from llama_jax.weights.params import Params

MAX_ROWS = 32
CACHE_BYTES = 4 << 30
"""A batch has fewer rows where the cache of MAX_ROWS would be larger than this."""
SLOTS = 256
"""The smallest cache, which grows by doubling."""
AHEAD = 64
"""New tokens that a cache has room for from the beginning."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One completion to be made."""

    index: int
    """Its place among all that were asked for."""
    prompt: list[int]
    settings: SamplingSettings
    spelled_after: Sequence[int]
    """The ids that its text continues: the prompt, or none where the text stands alone."""
    budget: int
    """Tokens it may have, by its settings and by the context."""
    stop_ids: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Batch:
    """Rows that are decoded together, and the arrays and sizes that say so to the device."""

    rows: list[Row]
    prompts: np.ndarray
    """[batch, time]: as many rows as the bucket has, the last of them empty."""
    lengths: np.ndarray
    request: Request
    slots: int
    """Of the cache to begin with."""


def bucket(length: int) -> int:
    """The padded length of a text: the next power of two, and at least 16."""
    return power_of_two(length, 16)


def slots_for(length: int, config: Config) -> int:
    """The slots of a cache that reads a text of this length and writes on."""
    return min(max(SLOTS, bucket(length + AHEAD)), config.max_seq_len)


def more_slots(slots: int, config: Config) -> int:
    """The slots of a cache that was full."""
    return min(max(SLOTS, 2 * slots), config.max_seq_len)


def slots_in_the_end(length: int, new: int, config: Config) -> int:
    """The slots of a cache that has read a text of this length and written so many tokens."""
    slots = slots_for(length, config)
    while slots < min(length + new, config.max_seq_len):
        slots = more_slots(slots, config)
    return slots


def rows_of(
    params: Params,
    prompts: Sequence[Prompt],
    settings: Sequence[SamplingSettings],
    n: int,
    tokenizer: Tokenizer | None,
    truncate: bool,
) -> list[Row]:
    """One row per completion: `n` of each prompt, whose seeds count up from its settings'."""
    check_count("n", n)
    found: list[Row] = []
    for i, (prompt, wanted) in enumerate(zip(prompts, settings, strict=True)):
        ids = encode(params.config, prompt, i, tokenizer, truncate)
        if wanted.stop and tokenizer is None:
            raise ValueError(f"stop={list(wanted.stop)} needs a tokenizer; use stop_ids")
        stop_ids = wanted.stop_ids
        if stop_ids is None:
            stop_ids = () if tokenizer is None else tokenizer.stop_ids
        _check_leaves_a_token(params.config, wanted, stop_ids)
        budget = min(wanted.max_new_tokens, params.config.max_seq_len - len(ids))
        for j in range(n):
            seeded = wanted.replace(seed=(int(wanted.seed) + j) % 2**32)
            found.append(Row(len(found), ids, seeded, ids, budget, tuple(stop_ids)))
    return found


def _check_leaves_a_token(
    config: Config, settings: SamplingSettings, stop_ids: Sequence[int]
) -> None:
    biased = {*settings.logit_bias, *settings.forbidden_ids}
    if wrong := [id for id in biased if not 0 <= id < config.vocab_size]:
        raise ValueError(
            f"token {wrong[0]} is given a bias or forbidden, and the model knows 0 to "
            f"{config.vocab_size - 1}"
        )
    forbidden = {id for id, bias in settings.logit_bias.items() if bias == -math.inf}
    forbidden |= {*settings.forbidden_ids}
    if settings.min_new_tokens:
        forbidden |= {id for id in stop_ids if 0 <= id < config.vocab_size}
    if len(forbidden) == config.vocab_size:
        raise ValueError("every token is forbidden; leave at least one that is no stop id")


def batches_of(params: Params, rows: Sequence[Row], tokenizer: Tokenizer | None) -> Iterator[Batch]:
    """The rows in batches of like length, the longest first: too little memory shows soon."""
    waiting = sorted(rows, key=lambda row: (-len(row.prompt), -row.budget))
    while waiting:
        longest = max(len(row.prompt) + row.budget for row in waiting[:MAX_ROWS])
        size = rows_at_once(params, min(bucket(longest), params.config.max_seq_len))
        yield _batch(params, waiting[:size], tokenizer)
        waiting = waiting[size:]


def rows_at_once(params: Params, slots: int) -> int:
    """How many rows a batch may have, a power of two, for the size of their cache."""
    c = params.config
    row_bytes = slots * c.n_layers * c.n_kv_heads * c.head_dim * 2 * cache_dtype(params).itemsize
    size = 1
    while size < MAX_ROWS and 2 * size * row_bytes <= CACHE_BYTES:
        size *= 2
    return size


def padded_rows(params: Params, count: int) -> int:
    """How many rows a batch of `count` has: a power of two, and as many on every device."""
    divisor = rows_divisor(params)
    return math.ceil(power_of_two(count) / divisor) * divisor


def _batch(params: Params, rows: list[Row], tokenizer: Tokenizer | None) -> Batch:
    config, longest = params.config, max(len(row.prompt) for row in rows)
    slots = slots_for(longest, config)
    # A long text is read in chunks as far as it goes, so its array may be as long as the cache.
    time = min(bucket(longest), config.max_seq_len) if slots <= SLOTS else slots
    size = padded_rows(params, len(rows))
    prompts = np.zeros((size, time), np.int32)
    for padded, row in zip(prompts, rows, strict=False):
        padded[: len(row.prompt)] = row.prompt
    lengths = _filled([len(row.prompt) for row in rows], size, np.int32, 1)
    request = replicated(params, request_of(config, rows, size, tokenizer))
    return Batch(rows, prompts, lengths, request, slots)


def request_of(
    config: Config, rows: Sequence[Row], size: int, tokenizer: Tokenizer | None = None
) -> Request:
    """The rows' settings as NumPy arrays, for a batch of `size`: further rows ask for nothing."""

    def each(name: str, dtype: Any, otherwise: float) -> Any:
        return _filled([getattr(row.settings, name) for row in rows], size, dtype, otherwise)

    stops: Any = np.zeros((size, config.vocab_size), bool)
    for mask, row in zip(stops, rows, strict=False):
        # An id beyond the vocabulary, a tokenizer's say, is never met.
        mask[[id for id in row.stop_ids if 0 <= id < config.vocab_size]] = True
    budget = _filled([row.budget for row in rows], size, np.int32, 0)
    top_k = [min(row.settings.top_k, config.vocab_size) for row in rows]
    least = [min(row.settings.min_new_tokens, row.budget) for row in rows]
    return Request(
        temperature=each("temperature", np.float32, 0),
        top_p=each("top_p", np.float32, 1),
        top_k=_filled(top_k, size, np.int32, 0),
        min_p=each("min_p", np.float32, 0),
        seed=each("seed", np.uint32, 0),
        repetition=each("repetition_penalty", np.float32, 1),
        presence=each("presence_penalty", np.float32, 0),
        frequency=each("frequency_penalty", np.float32, 0),
        bias=_bias(config, rows, size),
        stops=stops,
        stop_strings=stop_strings(
            tokenizer,
            [row.settings.stop for row in rows],
            [row.spelled_after for row in rows],
            batch=size,
            vocab=config.vocab_size,
        ),
        least=_filled(least, size, np.int32, 0),
        budget=budget,
        logprobs=_filled([], 1, bool, any(row.settings.logprobs is not None for row in rows))[0],
    )


def _bias(config: Config, rows: Sequence[Row], size: int) -> Any:
    biases = [
        {**row.settings.logit_bias, **dict.fromkeys(row.settings.forbidden_ids, -np.inf)}
        for row in rows
    ]
    table = np.zeros((size, config.vocab_size), np.float32)
    for values, given in zip(table, biases, strict=False):
        values[list(given)] = list(given.values())
    return table


def _filled(values: Sequence[Any], size: int, dtype: Any, otherwise: float) -> Any:
    return np.array([*values, *[otherwise] * (size - len(values))], dtype)
