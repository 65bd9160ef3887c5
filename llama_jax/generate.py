"""Prompts to text: encode, pad to a bucket, decode on the device, cut, and spell out."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import operator
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from llama_jax.params import Params
from llama_jax.sample import Request, advance, decode, prefill
from llama_jax.sharding import mesh_of
from llama_jax.tokenizer import Detokenizer, Tokenizer, detokenize, load_tokenizer

Prompt = str | Sequence[int]
FinishReason = Literal["stop", "length"]


@dataclasses.dataclass(frozen=True)
class Completion:
    """What a model wrote after one prompt."""

    text: str | None
    """What continues the prompt: prompt + text is the whole. None without a tokenizer."""
    tokens: list[int]
    """The new tokens, without the prompt's and without the stop token."""
    finish_reason: FinishReason
    """Why it ended: at a stop token ("stop"), or at `max_new_tokens` or the context's end."""


@dataclasses.dataclass(frozen=True)
class Delta:
    """What one row of a stream gained."""

    row: int
    text: str
    """Certain text only: half a character waits for the rest. "" without a tokenizer."""
    tokens: list[int]
    finish_reason: FinishReason | None
    """Set on a row's last delta, and there alone."""


def generate(
    params: Params,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int = 256,
    temperature: float | Sequence[float] = 0.8,
    top_p: float | Sequence[float] = 0.95,
    seed: int | Sequence[int] = 0,
    stop_ids: Sequence[int] | None = None,
    tokenizer: Tokenizer | None = None,
) -> list[Completion]:
    """One completion per prompt, in order. Prompts of any lengths run as one batch.

    A prompt is text, which gets the bos token before it, or a list of ids, taken as it is.
    `temperature` 0 takes the likeliest token each time; `top_p` keeps the likeliest tokens up to
    that much probability. `temperature`, `top_p` and `seed` are one for all or one per prompt.
    A row's draws are a function of its seed and its position in the text: the same prompt under
    the same seed gives the same text, in any row, so give each its own seed for different ones.

    `tokenizer` and `stop_ids` are the checkpoint's unless given. A completion ends at
    `params.config.max_seq_len` at the latest; a longer prompt is a ValueError.

    Compiled once per batch size, `max_new_tokens` and prompt-length bucket (a power of two).
    """
    batch = _batch(params, prompts, max_new_tokens, temperature, top_p, seed, stop_ids, tokenizer)
    if not batch.prompts:
        return []
    if max_new_tokens == 0:
        return [_completion(batch, prompt, [], "length") for prompt in batch.prompts]
    with _mesh(params):
        done = decode(params, *batch.arrays, **batch.sizes, chunk=_chunk(params))
    tokens, counts, stopped = jax.device_get((done.tokens, done.count, done.stopped))
    return [
        _completion(batch, prompt, row[:count].tolist(), "stop" if stop else "length")
        for prompt, row, count, stop in zip(batch.prompts, tokens, counts, stopped, strict=False)
    ]


def stream(
    params: Params,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int = 256,
    temperature: float | Sequence[float] = 0.8,
    top_p: float | Sequence[float] = 0.95,
    seed: int | Sequence[int] = 0,
    stop_ids: Sequence[int] | None = None,
    tokenizer: Tokenizer | None = None,
) -> Iterator[Delta]:
    """`generate`, as it goes: yields what each row gains while the others still run.

    A row's texts and tokens, joined, are those of `generate`. Arguments as there, and checked at
    once, not at the first `next`.
    """
    batch = _batch(params, prompts, max_new_tokens, temperature, top_p, seed, stop_ids, tokenizer)
    return _stream(params, batch)


@dataclasses.dataclass(frozen=True)
class _Batch:
    """Checked prompts, as the device takes them."""

    prompts: list[list[int]]
    tokenizer: Tokenizer | None
    arrays: tuple[Any, ...]
    """Padded prompts, lengths and the request: what is traced."""
    sizes: dict[str, int]
    """What is static."""


def _batch(
    params: Params,
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    temperature: float | Sequence[float],
    top_p: float | Sequence[float],
    seed: int | Sequence[int],
    stop_ids: Sequence[int] | None,
    tokenizer: Tokenizer | None,
) -> _Batch:
    config = params.config
    if isinstance(prompts, str):
        raise ValueError(
            f"prompts={prompts[:40]!r} is one text; pass a list: generate(params, [text])"
        )
    if (
        isinstance(max_new_tokens, bool)
        or not isinstance(max_new_tokens, int)
        or max_new_tokens < 0
    ):
        raise ValueError(f"max_new_tokens={max_new_tokens!r} must be an integer of at least 0")
    if tokenizer is None and params.tokenizer is not None:
        tokenizer = _cached_tokenizer(params.tokenizer)
    ids = [_encode(params, prompt, i, tokenizer) for i, prompt in enumerate(prompts)]
    rows = len(ids)
    temperatures = _per_row("temperature", temperature, rows, np.float32, 0, math.inf)
    top_ps = _per_row("top_p", top_p, rows, np.float32, 0, 1)
    seeds = _per_row("seed", seed, rows, np.uint32, 0, 2**32 - 1)
    if stop_ids is None:
        stop_ids = tokenizer.stop_ids if tokenizer is not None else ()
    elif not all(isinstance(id, int | np.integer) for id in stop_ids):
        raise ValueError(f"stop_ids={stop_ids!r} must be token ids")
    if not rows:
        return _Batch([], tokenizer, (), {})

    time = min(bucket(max(map(len, ids))), config.max_seq_len)
    padded = np.zeros((rows, time), np.int32)
    for row, prompt in zip(padded, ids, strict=True):
        row[: len(prompt)] = prompt
    lengths = np.array([len(prompt) for prompt in ids], np.int32)
    request = Request(
        temperature=jnp.asarray(temperatures),
        top_p=jnp.asarray(top_ps),
        seed=jnp.asarray(seeds),
        budget=jnp.asarray(np.minimum(max_new_tokens, config.max_seq_len - lengths)),
        stop_ids=jnp.asarray(stop_ids, jnp.int32).reshape(-1),
    )
    slots = min(time + max_new_tokens, config.max_seq_len)
    sizes = {"max_new_tokens": max_new_tokens, "slots": slots}
    return _Batch(ids, tokenizer, (padded, lengths, request), sizes)


def bucket(length: int) -> int:
    """The padded length of a prompt: the next power of two, and at least 16."""
    return max(16, 1 << (length - 1).bit_length())


def _encode(params: Params, prompt: Prompt, index: int, tokenizer: Tokenizer | None) -> list[int]:
    config = params.config
    if isinstance(prompt, str):
        if tokenizer is None:
            raise ValueError(
                f"prompt {index} is text and these params have no tokenizer; pass lists of ids, "
                "or tokenizer=llama_jax.load_tokenizer(path)"
            )
        ids = tokenizer.encode(prompt, bos=True, eos=False)
    else:
        try:
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
        raise ValueError(
            f"prompt {index} has {len(ids)} tokens and the context ends at "
            f"max_seq_len={config.max_seq_len}; shorten the prompt"
        )
    return ids


def _per_row(name: str, value: Any, rows: int, dtype: Any, low: float, high: float) -> np.ndarray:
    """`value` for each row, checked while Python still has it exactly."""
    values = list(value) if isinstance(value, Sequence | np.ndarray) else [value] * rows
    if len(values) != rows:
        raise ValueError(
            f"{name} has {len(values)} values for {rows} prompts; give one, or one each"
        )
    for v in values:
        number = isinstance(v, int | float | np.number) and not isinstance(v, bool)
        whole = dtype is not np.uint32 or isinstance(v, int | np.integer)
        if not (number and whole and low <= v <= high and math.isfinite(v)):
            kind = "an integer" if dtype is np.uint32 else "a finite number"
            bounds = f"from {low} to {high}" if math.isfinite(high) else f"of at least {low}"
            raise ValueError(f"{name}={v!r} must be {kind} {bounds}")
    return np.array(values, dtype)


@functools.lru_cache(maxsize=4)
def _cached_tokenizer(path: Path) -> Tokenizer:
    return load_tokenizer(path)


def _completion(
    batch: _Batch, prompt: list[int], tokens: list[int], finish_reason: FinishReason
) -> Completion:
    text = None if batch.tokenizer is None else detokenize(batch.tokenizer, tokens, after=prompt)
    return Completion(text, tokens, finish_reason)


_prefill = jax.jit(prefill, static_argnames=("max_new_tokens", "slots"))
_advance = jax.jit(advance, static_argnames="chunk", donate_argnames="decoding")


def _stream(params: Params, batch: _Batch) -> Iterator[Delta]:
    limit, chunk = batch.sizes.get("max_new_tokens", 0), _chunk(params)
    if not batch.prompts or not limit:
        yield from (Delta(row, "", [], "length") for row in range(len(batch.prompts)))
        return
    request, budgets = batch.arrays[2], np.asarray(batch.arrays[2].budget)
    spellers = [_speller(batch.tokenizer, prompt) for prompt in batch.prompts]
    given, ended = [0] * len(batch.prompts), [False] * len(batch.prompts)
    with _mesh(params):
        decoding = _prefill(params, *batch.arrays, **batch.sizes)
    # The first round adds nothing to the prefill's token: it compiles the loop, so that from the
    # first delta on no text waits for a compiler.
    for until in range(1, limit + chunk, chunk):
        with _mesh(params):
            decoding = _advance(params, decoding, request, jnp.array(until), chunk=chunk)
        tokens, counts, stopped = jax.device_get(
            (decoding.tokens, decoding.count, decoding.stopped)
        )
        for row in [row for row, over in enumerate(ended) if not over]:
            new = tokens[row, given[row] : counts[row]].tolist()
            given[row] = int(counts[row])
            ended[row] = bool(stopped[row]) or given[row] >= budgets[row]
            text = _spell(spellers[row], new, ended[row])
            reason: FinishReason | None = "stop" if stopped[row] else "length"
            yield Delta(row, text, new, reason if ended[row] else None)
        if all(ended):
            return


def _speller(tokenizer: Tokenizer | None, prompt: list[int]) -> Detokenizer | None:
    return None if tokenizer is None else Detokenizer(tokenizer, after=prompt)


def _spell(speller: Detokenizer | None, tokens: list[int], ended: bool) -> str:
    if speller is None:
        return ""
    text = "".join([speller.push(token) for token in tokens])
    return text + speller.finish() if ended else text


def _mesh(params: Params) -> contextlib.AbstractContextManager[Any]:
    mesh = mesh_of(params)
    return contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)


def _chunk(params: Params) -> int:
    """Tokens between two questions whether to go on: free on CPU, a stall on an accelerator."""
    leaf = jax.tree.leaves(params.weights)[0]
    return 1 if next(iter(leaf.devices())).platform == "cpu" else 8
