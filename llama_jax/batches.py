"""Prompts as the device takes them: checked, encoded, grouped by length, padded to buckets."""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from llama_jax.config import Config
from llama_jax.params import Params
from llama_jax.sample import Request
from llama_jax.settings import SamplingSettings
from llama_jax.tokenizer import Tokenizer, load_tokenizer

Prompt = str | Sequence[int]
MAX_ROWS = 32
CACHE_BYTES = 4 << 30
"""A batch has fewer rows where the cache of MAX_ROWS would be larger than this."""


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
    sizes: dict[str, int]
    """What is static: `room` and `slots`."""


def bucket(length: int) -> int:
    """The padded length of a text: the next power of two, and at least 16."""
    return max(16, 1 << (length - 1).bit_length())


def rows_of(
    params: Params,
    prompts: Sequence[Prompt],
    settings: Sequence[SamplingSettings],
    n: int,
    tokenizer: Tokenizer | None,
    truncate: bool,
) -> list[Row]:
    """One row per completion: `n` of each prompt, whose seeds count up from its settings'."""
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ValueError(f"n={n!r} must be a positive integer")
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


def encode(
    config: Config, prompt: Prompt, index: int, tokenizer: Tokenizer | None, truncate: bool = False
) -> list[int]:
    """A prompt's ids, every one of them the model's; text gets bos before it."""
    if isinstance(prompt, str):
        if tokenizer is None:
            raise ValueError(
                f"prompt {index} is text and these params have no tokenizer; pass lists of ids, "
                "or tokenizer=llama_jax.load_tokenizer(path)"
            )
        ids = tokenizer.encode(prompt, bos=True, eos=False)
    else:
        try:
            if isinstance(prompt, bytes) or any(isinstance(id, bool) for id in prompt):
                raise TypeError
            ids = [operator.index(id) for id in prompt]
        except TypeError:
            raise ValueError(
                f"prompt {index} is {prompt!r}; a prompt is a string or a list of token ids"
            ) from None
    if not ids:
        raise ValueError(f"prompt {index} has no tokens; begin it with bos, or pass text")
    if wrong := [id for id in ids if not 0 <= id < config.vocab_size]:
        raise ValueError(
            f"prompt {index} has token {wrong[0]}, and the model knows 0 to {config.vocab_size - 1}"
            "; is this tokenizer another model's?"
        )
    if len(ids) > config.max_seq_len:
        if not truncate:
            raise ValueError(
                f"prompt {index} has {len(ids)} tokens and the context ends at "
                f"max_seq_len={config.max_seq_len}; shorten the prompt, or pass truncate=True"
            )
        # From the left, and bos stays: a model that never saw a text without it writes poorly.
        kept = ids[-config.max_seq_len + 1 :]
        bos = tokenizer is not None and ids[0] == tokenizer.bos_id
        ids = [ids[0], *kept[1:]] if bos else kept
    return ids


def batches_of(params: Params, rows: Sequence[Row]) -> Iterator[Batch]:
    """The rows in batches of like length, the longest first: too little memory shows soon."""
    waiting = sorted(rows, key=lambda row: (-len(row.prompt), -row.budget))
    while waiting:
        room = bucket(max(row.budget for row in waiting[:MAX_ROWS]))
        slots = min(bucket(len(waiting[0].prompt)) + room, params.config.max_seq_len)
        size = rows_at_once(params, slots)
        yield _batch(params.config, waiting[:size])
        waiting = waiting[size:]


def rows_at_once(params: Params, slots: int) -> int:
    """How many rows a batch may have, a power of two, for the size of their cache."""
    c = params.config
    row_bytes = slots * c.n_layers * c.n_kv_heads * c.head_dim * 2 * params.dtype.itemsize
    size = 1
    while size < MAX_ROWS and 2 * size * row_bytes <= CACHE_BYTES:
        size *= 2
    return size


def _batch(config: Config, rows: list[Row]) -> Batch:
    time = min(bucket(max(len(row.prompt) for row in rows)), config.max_seq_len)
    # Settings change the room by powers of two as well, so that few of them compile anything.
    room = bucket(max(row.budget for row in rows))
    size = 1 << (len(rows) - 1).bit_length()
    prompts = np.zeros((size, time), np.int32)
    for padded, row in zip(prompts, rows, strict=False):
        padded[: len(row.prompt)] = row.prompt
    lengths = _filled([len(row.prompt) for row in rows], size, np.int32, 1)
    slots = min(time + room, config.max_seq_len)
    return Batch(
        rows, prompts, lengths, request_of(config, rows, size), {"room": room, "slots": slots}
    )


def request_of(config: Config, rows: Sequence[Row], size: int) -> Request:
    """The rows' settings as arrays, for a batch of `size` rows: further rows ask for nothing."""

    def each(name: str, dtype: Any, otherwise: float) -> jnp.ndarray:
        values = [getattr(row.settings, name) for row in rows]
        return jnp.asarray(_filled(values, size, dtype, otherwise))

    stops = np.zeros((size, config.vocab_size), bool)
    for mask, row in zip(stops, rows, strict=False):
        # An id beyond the vocabulary, a tokenizer's say, is never met.
        mask[[id for id in row.stop_ids if 0 <= id < config.vocab_size]] = True
    budget = _filled([row.budget for row in rows], size, np.int32, 0)
    top_k = [min(row.settings.top_k, config.vocab_size) for row in rows]
    least = [min(row.settings.min_new_tokens, row.budget) for row in rows]
    return Request(
        temperature=each("temperature", np.float32, 0),
        top_p=each("top_p", np.float32, 1),
        top_k=jnp.asarray(_filled(top_k, size, np.int32, 0)),
        min_p=each("min_p", np.float32, 0),
        seed=each("seed", np.uint32, 0),
        repetition=each("repetition_penalty", np.float32, 1),
        presence=each("presence_penalty", np.float32, 0),
        frequency=each("frequency_penalty", np.float32, 0),
        bias=_bias(config, rows, size),
        stops=jnp.asarray(stops),
        least=jnp.asarray(_filled(least, size, np.int32, 0)),
        budget=jnp.asarray(budget),
        logprobs=jnp.asarray(any(row.settings.logprobs is not None for row in rows)),
    )


def _bias(config: Config, rows: Sequence[Row], size: int) -> jnp.ndarray:
    biases = [
        {**row.settings.logit_bias, **dict.fromkeys(row.settings.forbidden_ids, -np.inf)}
        for row in rows
    ]
    if not any(biases):
        return jnp.zeros((size, config.vocab_size), jnp.float32)
    table = np.zeros((size, config.vocab_size), np.float32)
    for values, given in zip(table, biases, strict=False):
        values[list(given)] = list(given.values())
    return jnp.asarray(table)


def _filled(values: Sequence[Any], size: int, dtype: Any, otherwise: float) -> np.ndarray:
    return np.array([*values, *[otherwise] * (size - len(values))], dtype)


def tokenizer_of(params: Params, tokenizer: Tokenizer | None = None) -> Tokenizer | None:
    """The tokenizer given, or the checkpoint's, or None where it has none."""
    if tokenizer is None and params.tokenizer is not None:
        return _cached_tokenizer(params.tokenizer)
    return tokenizer


@functools.lru_cache(maxsize=4)
def _cached_tokenizer(path: Path) -> Tokenizer:
    return load_tokenizer(path)
