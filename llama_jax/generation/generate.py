"""Prompts to completions: all at once, or as they come."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

from llama_jax.generation.asked import Asked, rows_asked
from llama_jax.generation.batch import Row, batches_of
from llama_jax.generation.constraint import Form
from llama_jax.generation.driver import compile_ahead, decode_rows, prefill_of, read_prompts
from llama_jax.generation.grammar import JSONSchema
from llama_jax.generation.placement import Placement
from llama_jax.generation.progress import with_progress
from llama_jax.generation.prompts import Prompt
from llama_jax.generation.results import Completion, Delta, NaNLogitsError, TokenLogprob
from llama_jax.generation.row_writer import RowWriter
from llama_jax.generation.score import has_nan, prompt_logprobs
from llama_jax.generation.settings import SamplingSettings
from llama_jax.model.cache import Cache, KVCache
from llama_jax.tokenizer import Tokenizer, Tools, detokenize
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

    Prompts of like length run together, at most 32 a batch. Where there are several batches, a
    terminal shows a progress bar.

    Two programs do the work: one reads prompts, one decodes. Each is compiled once per batch size
    and length, both rounded up to a power of two. No setting compiles anything.

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
    done = list(completed(params, asked))
    if echo:
        done = [(row, _echoed(one, row, asked.tokenizer)) for row, one in done]
    return in_order(done)


def in_order(done: Sequence[tuple[Row, Completion]]) -> list[Completion]:
    """The completions in the order of their rows; NaNLogitsError where some failed."""
    completions = [one for _, one in sorted(done, key=lambda pair: pair[0].index)]
    failed = [i for i, one in enumerate(completions) if one.finish_reason == "error"]
    if failed:
        raise NaNLogitsError("completion", failed, completions)
    return completions


def completed(params: Params, asked: Asked) -> Iterator[tuple[Row, Completion]]:
    """Each row's completion as soon as it ends, batch by batch; that of a failed row says so."""
    rows, place, tokenizer = asked
    scored = _prompt_logprobs(params, place, rows)
    for batch in with_progress(batches_of(params.config, place, rows), len(rows)):
        deltas: list[list[Delta]] = [[] for _ in batch.rows]
        writers = [RowWriter(row, tokenizer) for row in batch.rows]
        read = functools.partial(read_prompts, params, place, batch)
        with contextlib.suppress(NaNLogitsError):  # the deltas say so too
            for i, delta, _ in decode_rows(
                params, place, writers, batch.settings, read, stream=False
            ):
                deltas[i].append(delta)
                if delta.finish_reason is not None:
                    row = batch.rows[i]
                    yield row, _completion(row, deltas[i], tokenizer, scored[row.index])


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
    rows, place, tokenizer = rows_asked(
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
        failed: list[int] = []
        for batch in batches_of(params.config, place, rows):
            writers = [RowWriter(row, tokenizer) for row in batch.rows]
            read = functools.partial(read_prompts, params, place, batch)
            try:
                for _, delta, _ in decode_rows(
                    params, place, writers, batch.settings, read, stream=True
                ):
                    yield delta
            except NaNLogitsError as error:  # the other rows go on
                failed += error.rows
        if failed:
            raise NaNLogitsError("row", failed)

    return deltas()


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
    rows, place, _ = rows_asked(
        params,
        prompts,
        settings,
        changes,
        tokenizer=tokenizer,
        cache=cache,
        form=Form(json_schema, regex, grammar),
        tools_of_each=tools,
    )
    batch = next(batches_of(params.config, place, rows))
    yield from compile_ahead(place, prefill_of(params, place, batch))


def _completion(
    row: Row,
    parts: list[Delta],
    tokenizer: Tokenizer | None,
    scored: list[TokenLogprob | None] | None,
) -> Completion:
    text = "".join(part.text for part in parts)
    logprobs = [entry for part in parts for entry in part.logprobs or []]
    failed = scored is not None and has_nan(entry for entry in scored if entry is not None)
    return Completion(
        text=None if tokenizer is None else text,
        tokens=[token for part in parts for token in part.tokens],
        finish_reason="error" if failed else parts[-1].finish_reason or "length",
        logprobs=None if row.settings.logprobs is None else logprobs,
        prompt_logprobs=scored,
        stop_token=parts[-1].stop_token,
        stop_logprob=parts[-1].stop_logprob,
    )


def _echoed(completion: Completion, row: Row, tokenizer: Tokenizer | None) -> Completion:
    tokens = [*row.prompt, *completion.tokens]
    if tokenizer is None:
        return dataclasses.replace(completion, tokens=tokens)
    stopped = len(detokenize(tokenizer, completion.tokens, row.prompt)) - len(completion.text or "")
    # Both at once: a prompt of ids may end inside a character, which the completion ends.
    whole = detokenize(tokenizer, tokens)
    text = whole[: len(whole) - stopped]
    return dataclasses.replace(completion, text=text, tokens=tokens)


def _prompt_logprobs(
    params: Params, place: Placement, rows: list[Row]
) -> list[list[TokenLogprob | None] | None]:
    wanted = [row for row in rows if row.settings.prompt_logprobs is not None]
    prompts = list(dict.fromkeys(tuple(row.prompt) for row in wanted))  # one for `n` rows
    scores = dict(
        zip(prompts, prompt_logprobs(params, place, list(map(list, prompts))), strict=True)
    )
    found: list[list[TokenLogprob | None] | None] = [None] * len(rows)
    for row in wanted:
        k = row.settings.prompt_logprobs
        found[row.index] = [None, *(entry.first(k or 0) for entry in scores[tuple(row.prompt)])]
    return found
