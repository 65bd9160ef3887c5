"""Completions one by one, for whoever writes each down as soon as it has ended."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from llama_jax.generation import generate as whole
from llama_jax.generation.batch import batches_of, rows_of
from llama_jax.generation.driver import decode_batch
from llama_jax.generation.prompts import Prompt, tokenizer_of
from llama_jax.generation.results import Completion, Delta
from llama_jax.generation.settings import SamplingSettings, for_each
from llama_jax.model.cache import Cache, KVCache
from llama_jax.model.placement import Placement
from llama_jax.tokenizer import Tokenizer
from llama_jax.weights.params import Params


def as_finished(
    params: Params,
    prompts: Sequence[Prompt],
    settings: SamplingSettings | Sequence[SamplingSettings] | None = None,
    *,
    n: int = 1,
    tokenizer: Tokenizer | None = None,
    cache: type[Cache] = KVCache,
    **changes: Any,
) -> Iterator[tuple[int, Completion]]:
    """`generate`, each completion with its place in the list as soon as it has ended."""
    tokenizer = tokenizer_of(params, tokenizer)
    place = Placement.of(params, cache)
    each = for_each(settings, changes, len(prompts))
    rows = rows_of(params.config, prompts, each, n, tokenizer, truncate=False)
    scored = whole._prompt_logprobs(params, place, rows)
    for batch in whole._with_progress(batches_of(params.config, place, rows), len(rows)):
        deltas: list[list[Delta]] = [[] for _ in batch.rows]
        for i, delta in decode_batch(params, place, batch, tokenizer, stream=False):
            deltas[i].append(delta)
            if delta.finish_reason is not None:
                row = batch.rows[i]
                done = whole._completion(row, deltas[i], tokenizer, scored[row.index])
                yield row.index, done
