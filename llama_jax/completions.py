"""Prompts to completions: all at once, or as they come.

Rows run in batches (`generation/completed.py`), and many rows by an engine's turns where that is
faster (`serve/many.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from llama_jax.generation.asked import Asked, rows_asked
from llama_jax.generation.batch import Form
from llama_jax.generation.completed import (
    Gains,
    by_batches,
    completed,
    echoed,
    in_order,
    prepare_batches,
)
from llama_jax.generation.grammar import JSONSchema
from llama_jax.generation.prompts import Prompt
from llama_jax.generation.results import Completion, Delta, NaNLogitsError
from llama_jax.generation.settings import SamplingSettings
from llama_jax.model.cache import Cache, KVCache
from llama_jax.serve import many
from llama_jax.tokenizer import Tokenizer, Tools
from llama_jax.weights.params import Params


def generate(
    params: Params,
    prompts: Sequence[Prompt],
    settings: SamplingSettings | Sequence[SamplingSettings] | None = None,
    *,
    n: int = 1,
    echo: bool = False,
    truncate: bool = False,
    tools: Tools | None = None,
    tokenizer: Tokenizer | None = None,
    cache: type[Cache] = KVCache,
    json_schema: JSONSchema | None = None,
    regex: str | None = None,
    grammar: str | None = None,
    **changes: Any,
) -> list[Completion]:
    """Completions of prompts, in order: `generate(params, ["Once"], temperature=0.7, seed=1)`.

    A prompt is text, which gets bos before it, a list of token ids, taken as it is, or a dialog, a
    list of messages, which is written in the model's chat format. `tools` are JSON schemas of
    functions that the model may call: each dialog tells the model of them, where its chat template,
    or Llama 3's format, has a place for them. `settings` is one for all prompts or one each. Any
    further keyword changes that field of the settings; a number given as a list is one for each
    prompt. `n` completions of a prompt stand side by side, and their seeds count up. With `echo` a
    completion's text and tokens begin with the prompt's. `cache` is the kind of cache that keys and
    values lie in.

    In float32 a completion depends on its prompt, settings and seed alone. In bfloat16 a batch of
    another size can change a token (docs/promises.md). A prompt that is given twice with one seed
    has one completion: for others ask for `n`, give a seed each, or `seed=None`, which draws a seed
    for each prompt.

    With `json_schema` (a schema or its text), `regex` (of Rust's kind) or `grammar` (llguidance's)
    each completion is of that form, or the beginning of such a text where `max_new_tokens` or a
    stop string cut it. It ends ("stop") where nothing may follow. The host looks at every token
    then, and needs the extra `grammar`.

    Prompts of like length run together, at most 32 a batch. More than 32 of unlike lengths run by
    an engine's turns on a CPU, where that is faster (docs/promises.md). A terminal then shows a
    progress bar.

    In a batch two programs do the work: one reads prompts, one decodes. Each is compiled once per
    batch size and length, both rounded up to a power of two. No setting compiles anything.

    ValueError where a prompt is empty, has ids that the model does not know, or is longer than
    `params.config.max_seq_len`; with `truncate` it loses its beginning instead. `NaNLogitsError`,
    after all other rows have ended, where a row's logits are NaN or infinite; it has all results.
    """
    asked = rows_asked(
        params,
        prompts,
        settings,
        changes,
        tokenizer=tokenizer,
        cache=cache,
        form=Form(json_schema, regex, grammar),
        tools=tools,
        n=n,
        truncate=truncate,
    )
    done = list(completed(params, asked, _gains(params, asked, stream=False)))
    if echo:
        done = [(row, echoed(one, row, asked.tokenizer)) for row, one in done]
    return in_order(done)


def stream(
    params: Params,
    prompts: Sequence[Prompt],
    settings: SamplingSettings | Sequence[SamplingSettings] | None = None,
    *,
    n: int = 1,
    truncate: bool = False,
    tools: Tools | None = None,
    tokenizer: Tokenizer | None = None,
    cache: type[Cache] = KVCache,
    json_schema: JSONSchema | None = None,
    regex: str | None = None,
    grammar: str | None = None,
    **changes: Any,
) -> Iterator[Delta]:
    """`generate` as it goes: yields what each row gains while the others still run.

    The texts, tokens and log-probabilities of a row, joined, are those of `generate`; row i is its
    i-th completion. The arguments are the same, and are checked at once, not at the first `next`.
    """
    asked = rows_asked(
        params,
        prompts,
        settings,
        changes,
        tokenizer=tokenizer,
        cache=cache,
        form=Form(json_schema, regex, grammar),
        tools=tools,
        n=n,
        truncate=truncate,
    )

    def deltas() -> Iterator[Delta]:
        failed = []
        for row, delta in _gains(params, asked, stream=True):
            if delta.finish_reason == "error":
                failed.append(row.index)
            yield delta
        if failed:
            raise NaNLogitsError("row", failed)

    return deltas()


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
    for row, done in completed(params, asked, _gains(params, asked, stream=False)):
        if done.finish_reason == "error":
            failed.append(row.index)
        yield row.index, done
    if failed:
        raise NaNLogitsError("completion", failed)


def prepare(
    params: Params,
    prompts: Sequence[Prompt],
    settings: SamplingSettings | Sequence[SamplingSettings] | None = None,
    *,
    tools: Sequence[Tools | None] | None = None,
    tokenizer: Tokenizer | None = None,
    cache: type[Cache] = KVCache,
    json_schema: JSONSchema | None = None,
    regex: str | None = None,
    grammar: str | None = None,
    **changes: Any,
) -> Iterator[None]:
    """Compiles what the first batch of `generate` or `stream` with these arguments will run.

    Yields after each of the two programs; a stream's first token needs only the first. `tools` are
    those of each prompt.

    `checkpoint.shapes` makes params of shapes alone, so that this can go on while `load` reads.
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
    )
    first = many.prepare if many.suits(params, asked) else prepare_batches
    yield from first(params, asked)


def _gains(params: Params, asked: Asked, *, stream: bool) -> Gains:
    """What the rows gain, the faster way."""
    if many.suits(params, asked):
        return many.by_turns(params, asked)
    return by_batches(params, asked, stream=stream)
