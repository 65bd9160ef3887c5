"""How likely a text is: log-probabilities of given tokens, and perplexity."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from llama_jax.compilation import OPTIONS
from llama_jax.generation.batch import bucket, padded_rows, rows_at_once
from llama_jax.generation.prompts import Prompt, checked_ids, encode, tokenizer_of
from llama_jax.generation.sample import logprobs_of
from llama_jax.generation.settings import MAX_LOGPROBS
from llama_jax.generation.stop_strings import power_of_two
from llama_jax.model.cache import KVCache
from llama_jax.model.transformer import forward
from llama_jax.sharding.arrays import REPLICATED, cache_dtype, constrain, on_mesh_of, platform_of
from llama_jax.tokenizer import Tokenizer
from llama_jax.weights.params import Params

CHUNK = 128
"""Positions of each text whose logits exist at once."""
ROWS = 8
"""Texts that are read together. Of fewer an accelerator reads more positions at once."""


@dataclasses.dataclass(frozen=True)
class TokenLogprob:
    """How likely a token was where it stands, under the raw logits."""

    token: int
    logprob: float
    top: dict[int, float]
    """The likeliest tokens there with theirs, the likeliest first."""

    @classmethod
    def of(cls, token: Any, logprob: Any, ids: np.ndarray, logprobs: np.ndarray) -> TokenLogprob:
        """From arrays; as many of `logprobs` as there are `ids`."""
        top = dict(zip(ids.tolist(), logprobs.tolist(), strict=False))
        return cls(int(token), float(logprob), top)

    def first(self, k: int) -> TokenLogprob:
        """This, with the `k` likeliest alone."""
        return dataclasses.replace(self, top=dict(list(self.top.items())[:k]))


@dataclasses.dataclass(frozen=True)
class Score:
    """How likely a model holds a text."""

    tokens: list[int]
    """The text's, bos included."""
    logprobs: list[float]
    """Of every token after the first, each given those before it."""

    @property
    def nll(self) -> float:
        """The negative log-likelihood, in nats."""
        return -math.fsum(self.logprobs)

    @property
    def perplexity(self) -> float:
        """exp of the mean negative log-likelihood of the tokens after the first."""
        return _exp_of_mean(self.nll, len(self.logprobs))


def score(
    params: Params, texts: Sequence[Prompt], *, tokenizer: Tokenizer | None = None
) -> list[Score]:
    """The log-probability of every token of each text (or list of ids) after its first."""
    if isinstance(texts, str):
        raise ValueError(f"texts={texts[:40]!r} is one text; pass a list: [text]")
    tokenizer = tokenizer_of(params, tokenizer)
    ids = [encode(params.config, text, i, tokenizer) for i, text in enumerate(texts)]
    entries = prompt_logprobs(params, ids)
    return [
        Score(one, [entry.logprob for entry in found])
        for one, found in zip(ids, entries, strict=True)
    ]


def prompt_logprobs(params: Params, ids: Sequence[list[int]]) -> list[list[TokenLogprob]]:
    """For each list of ids, what every token after the first was likely to be."""
    found: list[list[TokenLogprob]] = [[] for _ in ids]
    order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
    while order:
        size = min(ROWS, rows_at_once(params, bucket(len(ids[order[0]]))))
        places, order = order[:size], order[size:]
        for place, entries in zip(places, _batch(params, [ids[i] for i in places]), strict=True):
            found[place] = entries
    return found


@dataclasses.dataclass(frozen=True)
class Perplexity:
    """A long text's likelihood, by windows."""

    nll: float
    """In nats, over all scored tokens."""
    tokens: int
    """How many were scored: all but the first."""

    @property
    def value(self) -> float:
        """exp(nll / tokens)."""
        return _exp_of_mean(self.nll, self.tokens)


def perplexity(
    params: Params, ids: Sequence[int], *, context: int | None = None, stride: int | None = None
) -> Iterator[Perplexity]:
    """The perplexity of a text of any length, so far, after each window of `context` tokens.

    A window begins `stride` tokens after the one before it (half a context by default) and scores
    the tokens that the one before did not: each has at least `context - stride` before it.
    """
    limit = params.config.max_seq_len
    context = limit if context is None else context
    stride = max(1, context // 2) if stride is None else stride
    if not 2 <= context <= limit:
        raise ValueError(f"context={context} must be from 2 to max_seq_len={limit}")
    if not 1 <= stride < context:
        raise ValueError(f"stride={stride} must be from 1 to context - 1 = {context - 1}")
    if isinstance(ids, str):
        raise ValueError(f"ids={ids[:40]!r} is a text; encode it: load_tokenizer(path).encode")
    ids = checked_ids(params.config, ids, 0)
    nll, scored, start = 0.0, 1, 0
    while scored < len(ids):
        window = ids[start : start + context]
        (entries,) = prompt_logprobs(params, [window])
        fresh = [entry.logprob for entry in entries[scored - start - 1 :]]
        nll, scored = nll - math.fsum(fresh), start + len(window)
        start += stride
        yield Perplexity(nll, scored - 1)


def _exp_of_mean(nll: float, tokens: int) -> float:
    """Infinite where no float is so large."""
    try:
        return math.exp(nll / tokens) if tokens else math.nan
    except OverflowError:
        return math.inf


def _batch(params: Params, ids: list[list[int]]) -> list[list[TokenLogprob]]:
    time = bucket(max(map(len, ids)))
    tokens = np.zeros((padded_rows(params, len(ids)), time), np.int32)
    for padded, one in zip(tokens, ids, strict=False):
        padded[: len(one)] = one
    with on_mesh_of(params):
        found = _logprobs(params, tokens, cache_dtype(params), width=_width(params, tokens))
        chosen, top_ids, tops = jax.device_get(found)
    return [
        [
            TokenLogprob.of(one[i + 1], chosen[row, i], top_ids[row, i], tops[row, i])
            for i in range(len(one) - 1)
        ]
        for row, one in enumerate(ids)
    ]


def _width(params: Params, tokens: np.ndarray) -> int:
    """Positions that are read at once: on an accelerator as many in all as of ROWS texts."""
    rows, time = tokens.shape
    many = 0 if platform_of(params) == "cpu" else CHUNK * ROWS // power_of_two(rows)
    return min(time, max(CHUNK, many))


@functools.partial(jax.jit, static_argnames=("dtype", "width"), compiler_options=OPTIONS)
def _logprobs(
    params: Params, tokens: Int[Array, "batch time"], dtype: Any, *, width: int
) -> tuple[Array, Array, Array]:
    """At each index, of the token that follows it; a chunk's logits at a time."""
    batch, time = tokens.shape
    c = params.config
    k = min(MAX_LOGPROBS, c.vocab_size)
    following = jnp.roll(tokens, -1, axis=1)
    cache = KVCache.empty(c, batch=batch, slots=time, dtype=dtype)
    cache = dataclasses.replace(cache, fresh=False)  # one program for all chunks

    def one(cache: KVCache, start: Array) -> tuple[KVCache, tuple[Array, Array, Array]]:
        now = jax.lax.dynamic_slice_in_dim(tokens, start, width, axis=1)
        wanted = jax.lax.dynamic_slice_in_dim(following, start, width, axis=1)
        positions = jnp.broadcast_to(start + jnp.arange(width), now.shape)
        logits, cache = forward(params, now, positions, cache)
        return cache, logprobs_of(logits, wanted, k)

    _, found = jax.lax.scan(one, cache, jnp.arange(0, time, width))
    found = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(batch, time, *x.shape[3:]), found)
    return jax.tree.map(lambda x: constrain(x, REPLICATED), found)  # every process fetches it
