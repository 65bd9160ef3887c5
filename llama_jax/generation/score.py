"""How likely a text is: log-probabilities of given tokens, and perplexity."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from llama_jax.config import Config
from llama_jax.generation.batch import padded_rows, rows_at_once
from llama_jax.generation.limits import (
    MAX_LOGPROBS,
    SCORE_TEXTS,
    SCORE_TOKENS_A_ROW,
    bucket,
    power_of_two,
    tokens_per_read,
)
from llama_jax.generation.placement import Placement
from llama_jax.generation.prompts import Prompt, checked_ids, encode, listed, tokenizer_of
from llama_jax.generation.results import NaNLogitsError, Perplexity, Score, TokenLogprob
from llama_jax.generation.sample import logprobs_of
from llama_jax.generation.state import NewCache
from llama_jax.kernels import COMPILER_OPTIONS
from llama_jax.model.transformer import forward
from llama_jax.sharding.arrays import constrain
from llama_jax.tokenizer import Tokenizer
from llama_jax.validation import wrong_kind
from llama_jax.weights.params import Params
from llama_jax.weights.table import REPLICATED


def score(
    params: Params, texts: Sequence[Prompt], *, tokenizer: Tokenizer | None = None
) -> list[Score]:
    """The log-probability of every token of each text (or list of ids) after its first.

    `NaNLogitsError` where the logits of some texts are NaN or infinite; it has all scores.
    """
    tokenizer = tokenizer_of(params, tokenizer)
    several = listed("texts", texts)
    ids = [encode(params.config, text, i, tokenizer) for i, text in enumerate(several)]
    entries = prompt_logprobs(params, Placement.of(params), ids)
    scores = [
        Score(one, [entry.logprob for entry in found])
        for one, found in zip(ids, entries, strict=True)
    ]
    if failed := [i for i, found in enumerate(entries) if has_nan(found)]:
        raise NaNLogitsError("text", failed, scores)
    return scores


def has_nan(entries: Iterable[TokenLogprob]) -> bool:
    """Whether a log-probability is NaN: of logits that are NaN or infinite."""
    return any(math.isnan(entry.logprob) for entry in entries)


def prompt_logprobs(
    params: Params, place: Placement, ids: Sequence[list[int]]
) -> list[list[TokenLogprob]]:
    """For each list of ids, what every token after the first was likely to be."""
    found: list[list[TokenLogprob]] = [[] for _ in ids]
    order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
    while order:
        longest = bucket(len(ids[order[0]]))
        size = min(SCORE_TEXTS, rows_at_once(params.config, place, longest))
        now, order = order[:size], order[size:]
        for i, entries in zip(now, _batch(params, place, [ids[i] for i in now]), strict=True):
            found[i] = entries
    return found


def perplexity(
    params: Params,
    ids: Sequence[int],
    *,
    context: int | None = None,
    stride: int | None = None,
    tokenizer: Tokenizer | None = None,
) -> Iterator[Perplexity]:
    """The perplexity of a text of any length, so far, after each window of `context` tokens.

    A window begins `stride` tokens after the one before it (half a context by default) and scores
    the tokens that the one before did not, so that each token after the first is scored once, with
    at least `context - stride` tokens before it.

    Where the text begins with the tokenizer's bos, every window does: bos takes the place of the
    window's first token. The model saw no text without it. `tokenizer` is the checkpoint's, if none
    is given. `NaNLogitsError` where the logits are NaN or infinite.
    """
    tokenizer = tokenizer_of(params, tokenizer)
    context, stride = windows(params.config, context, stride)
    if isinstance(ids, str):
        raise ValueError(f"ids={ids[:40]!r} is a text; encode it: load_tokenizer(path).encode")
    ids = checked_ids(params.config, ids, 0)
    begins_with_bos = tokenizer is not None and ids[0] == tokenizer.bos_id
    place = Placement.of(params)
    nll, scored, start = 0.0, 1, 0
    while scored < len(ids):
        window = ids[start : start + context]
        if begins_with_bos:
            window[0] = ids[0]
        (entries,) = prompt_logprobs(params, place, [window])
        fresh = entries[scored - start - 1 :]
        if has_nan(fresh):
            raise NaNLogitsError("the window at token", [start])
        nll, scored = nll - math.fsum(entry.logprob for entry in fresh), start + len(window)
        start += stride
        yield Perplexity(nll, scored - 1)


def windows(config: Config, context: int | None, stride: int | None) -> tuple[int, int]:
    """The context and the stride of a perplexity, checked."""
    for name, given in ("context", context), ("stride", stride):
        if given is not None and not isinstance(given, int):
            raise wrong_kind(name, given, "pass an integer, a number of tokens")
    limit = config.max_seq_len
    context = limit if context is None else context
    stride = max(1, context // 2) if stride is None else stride
    if not 2 <= context <= limit:
        raise ValueError(f"context={context} must be from 2 to max_seq_len={limit}")
    if not 1 <= stride < context:
        raise ValueError(f"stride={stride} must be from 1 to context - 1 = {context - 1}")
    return context, stride


def score_arguments(params: Params, place: Placement, tokens: np.ndarray) -> dict[str, Any]:
    """What `token_logprobs` is called with for texts [batch, time] padded on the right."""
    rows, time = tokens.shape
    in_all = place.limits.score_tokens // power_of_two(rows) * rows
    return {
        "params": params,
        "tokens": tokens,
        "cache": NewCache(place.cache, rows, time, place.cache_dtype),
        "chunk_tokens": tokens_per_read(rows, time, in_all=in_all, a_row=SCORE_TOKENS_A_ROW),
    }


@functools.partial(
    jax.jit, static_argnames=("cache", "chunk_tokens"), compiler_options=COMPILER_OPTIONS
)
def token_logprobs(
    params: Params, tokens: Int[Array, "batch time"], *, cache: NewCache, chunk_tokens: int
) -> tuple[Array, Array, Array]:
    """At each index, the log-probability of the token that follows it, and the likeliest ones.

    Returns [batch, time], and ids and log-probabilities [batch, time, k]. The logits of
    `chunk_tokens` positions of each text exist at once.
    """
    batch, time = tokens.shape
    k = min(MAX_LOGPROBS, params.config.vocab_size)
    following = jnp.roll(tokens, -1, axis=1)
    past = cache.empty(params.config).continued()  # one program for all chunks

    def chunk(past: Any, start: Array) -> tuple[Any, tuple[Array, Array, Array]]:
        now = jax.lax.dynamic_slice_in_dim(tokens, start, chunk_tokens, axis=1)
        wanted = jax.lax.dynamic_slice_in_dim(following, start, chunk_tokens, axis=1)
        positions = jnp.broadcast_to(start + jnp.arange(chunk_tokens), now.shape)
        logits, past = forward(params, now, positions, past)
        return past, logprobs_of(logits, wanted, k)

    _, found = jax.lax.scan(chunk, past, jnp.arange(0, time, chunk_tokens))
    found = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(batch, time, *x.shape[3:]), found)
    return jax.tree.map(lambda x: constrain(x, REPLICATED), found)  # every process fetches it


def _batch(params: Params, place: Placement, ids: list[list[int]]) -> list[list[TokenLogprob]]:
    time = bucket(max(map(len, ids)))
    tokens = np.zeros((padded_rows(place, len(ids)), time), np.int32)
    for padded, one in zip(tokens, ids, strict=False):
        padded[: len(one)] = one
    with place.use_mesh():
        found = token_logprobs(**score_arguments(params, place, tokens))
        chosen, top_ids, tops = jax.device_get(found)
    return [
        [
            TokenLogprob.of(one[i + 1], chosen[row, i], top_ids[row, i], tops[row, i])
            for i in range(len(one) - 1)
        ]
        for row, one in enumerate(ids)
    ]
