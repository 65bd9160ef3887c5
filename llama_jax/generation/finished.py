"""Completions one by one, for whoever writes each down as soon as it has ended."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from llama_jax.generation.asked import rows_asked
from llama_jax.generation.constraint import Form
from llama_jax.generation.generate import completed
from llama_jax.generation.grammar import JSONSchema
from llama_jax.generation.prompts import Prompt
from llama_jax.generation.results import Completion, NaNLogitsError
from llama_jax.generation.settings import SamplingSettings
from llama_jax.model.cache import Cache, KVCache
from llama_jax.tokenizer import Tokenizer, Tools
from llama_jax.weights.params import Params


def as_finished(
    params: Params,
    prompts: Sequence[Prompt],
    settings: SamplingSettings | Sequence[SamplingSettings] | None = None,
    *,
    n: int = 1,
    tools: Sequence[Tools | None] | None = None,
    tokenizer: Tokenizer | None = None,
    cache: type[Cache] = KVCache,
    json_schema: JSONSchema | None = None,
    regex: str | None = None,
    grammar: str | None = None,
    **changes: Any,
) -> Iterator[tuple[int, Completion]]:
    """Each completion of `generate` as soon as it has ended, with its index.

    `tools` are those of each prompt.

    `NaNLogitsError`, once all have ended, where the logits of some were NaN or infinite.
    """
    asked = rows_asked(
        params,
        prompts,
        settings,
        changes,
        tokenizer=tokenizer,
        cache=cache,
        form=Form(json_schema, regex, grammar),
        tools_of_each=tools,
        n=n,
    )
    failed = []
    for row, done in completed(params, asked):
        if done.finish_reason == "error":
            failed.append(row.index)
        yield row.index, done
    if failed:
        raise NaNLogitsError("completion", failed)
