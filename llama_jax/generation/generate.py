"""Prompts to completions: all at once, or as they come."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from llama_jax.generation.batch import Batch, Row, batches_of, rows_of
from llama_jax.generation.driver import Delta, FinishReason, chunk_of, decoded, prepare_batch
from llama_jax.generation.prompts import Prompt, tokenizer_of
from llama_jax.generation.score import TokenLogprob, prompt_logprobs
from llama_jax.generation.settings import SamplingSettings, for_each
from llama_jax.tokenizer import Tokenizer, detokenize
from llama_jax.weights.params import Params


@dataclasses.dataclass(frozen=True)
class Completion:
    """What a model wrote after one prompt."""

    text: str | None
    """What continues the prompt: prompt + text is the whole. None without a tokenizer."""
    tokens: list[int]
    """The new tokens, without the prompt's and without a stop token."""
    finish_reason: FinishReason
    """Why it ended: at a stop, or at `max_new_tokens` or the context's end ("length")."""
    logprobs: list[TokenLogprob] | None = None
    """Of the new tokens, one each, if the settings asked for them."""
    prompt_logprobs: list[TokenLogprob | None] | None = None
    """Of the prompt's tokens; the first follows nothing and has None."""


def generate(
    params: Params,
    prompts: Sequence[Prompt],
    settings: SamplingSettings | Sequence[SamplingSettings] | None = None,
    *,
    n: int = 1,
    echo: bool = False,
    truncate: bool = False,
    tokenizer: Tokenizer | None = None,
    **changes: Any,
) -> list[Completion]:
    """Completions of prompts, in order: `generate(params, ["Once"], temperature=0.7, seed=1)`.

    A prompt is text, which gets bos before it, or a list of ids, taken as it is. `settings` is one
    for all or one each, and any further keyword changes that field of it; a number given as a list
    is one for each prompt. `n` completions of a prompt stand side by side, their seeds counting
    up. With `echo` a completion's text and tokens begin with the prompt's. A prompt longer than
    `params.config.max_seq_len` is a ValueError, or with `truncate` loses its beginning.

    A completion depends on its prompt, settings and seed alone, whatever else is in the list.
    Prompts of like length run together, at most 32 a batch; a progress bar shows where there
    are several batches and a terminal to show it on.

    Two programs do the work: one reads prompts, one decodes. Each is compiled once per batch size
    and length, both rounded up to a power of two; no setting compiles anything.
    """
    tokenizer = tokenizer_of(params, tokenizer)
    rows = rows_of(params, *_each(prompts, settings, changes), n, tokenizer, truncate)
    completions = complete(params, rows, tokenizer)
    if not echo:
        return completions
    return [_echoed(done, row, tokenizer) for done, row in zip(completions, rows, strict=True)]


def complete(params: Params, rows: list[Row], tokenizer: Tokenizer | None) -> list[Completion]:
    """The rows' completions, in their order, batch by batch."""
    scored = _prompt_logprobs(params, rows)
    found: list[Completion | None] = [None] * len(rows)
    for batch in _shown(params, rows, tokenizer):
        deltas: list[list[Delta]] = [[] for _ in batch.rows]
        for place, delta in decoded(params, batch, tokenizer, pause=None):
            deltas[place].append(delta)
        for row, parts in zip(batch.rows, deltas, strict=True):
            found[row.index] = _completion(row, parts, tokenizer, scored[row.index])
    return [completion for completion in found if completion is not None]


def stream(
    params: Params,
    prompts: Sequence[Prompt],
    settings: SamplingSettings | Sequence[SamplingSettings] | None = None,
    *,
    n: int = 1,
    truncate: bool = False,
    tokenizer: Tokenizer | None = None,
    **changes: Any,
) -> Iterator[Delta]:
    """`generate`, as it goes: yields what each row gains while the others still run.

    A row's texts, tokens and log-probabilities, joined, are those of `generate`; row i is its i-th
    completion. Arguments as there, and checked at once, not at the first `next`.
    """
    tokenizer = tokenizer_of(params, tokenizer)
    rows = rows_of(params, *_each(prompts, settings, changes), n, tokenizer, truncate)
    return _stream(params, rows, tokenizer)


def prepare(
    params: Params,
    prompts: Sequence[Prompt],
    settings: SamplingSettings | Sequence[SamplingSettings] | None = None,
    *,
    tokenizer: Tokenizer | None = None,
    **changes: Any,
) -> Iterator[None]:
    """Compiles what the first batch of `generate` or `stream` with these arguments will run.

    Yields after each program: after the first, a stream's first token waits for no compiler.

    `checkpoint.shapes` makes params of shapes alone, so that this can go on while `load` reads.
    """
    tokenizer = tokenizer_of(params, tokenizer)
    each = _each(prompts, settings, changes)
    rows = rows_of(params, *each, 1, tokenizer, truncate=False)
    yield from prepare_batch(params, next(batches_of(params, rows, tokenizer)))


def _each(
    prompts: Sequence[Prompt],
    settings: SamplingSettings | Sequence[SamplingSettings] | None,
    changes: dict[str, Any],
) -> tuple[list[Prompt], list[SamplingSettings]]:
    """The prompts, and the settings of each."""
    if isinstance(prompts, str):
        raise ValueError(f"prompts={prompts[:40]!r} is one text; pass a list: [text]")
    prompts = list(prompts)
    return prompts, for_each(settings, changes, len(prompts))


def _completion(
    row: Row,
    parts: list[Delta],
    tokenizer: Tokenizer | None,
    scored: list[TokenLogprob | None] | None,
) -> Completion:
    text = "".join(part.text for part in parts)
    logprobs = [entry for part in parts for entry in part.logprobs or []]
    return Completion(
        text=None if tokenizer is None else text,
        tokens=[token for part in parts for token in part.tokens],
        finish_reason=parts[-1].finish_reason or "length",
        logprobs=None if row.settings.logprobs is None else logprobs,
        prompt_logprobs=scored,
    )


def _echoed(completion: Completion, row: Row, tokenizer: Tokenizer | None) -> Completion:
    tokens = [*row.prompt, *completion.tokens]
    if tokenizer is None:
        return dataclasses.replace(completion, tokens=tokens)
    # Some tokenizers spell bos, which is no part of the text that was given.
    spelled = tokens[row.prompt[0] == tokenizer.bos_id :]
    # Of both at once: a prompt of ids may end inside a character, which the completion ends.
    stopped = len(detokenize(tokenizer, completion.tokens, row.prompt)) - len(completion.text or "")
    whole = detokenize(tokenizer, spelled)
    text = whole[: len(whole) - stopped]
    return dataclasses.replace(completion, text=text, tokens=tokens)


def _stream(params: Params, rows: list[Row], tokenizer: Tokenizer | None) -> Iterator[Delta]:
    for batch in batches_of(params, rows, tokenizer):
        for _, delta in decoded(params, batch, tokenizer, pause=chunk_of(params)):
            yield delta


def _prompt_logprobs(params: Params, rows: list[Row]) -> list[list[TokenLogprob | None] | None]:
    wanted = [row for row in rows if row.settings.prompt_logprobs is not None]
    prompts = list(dict.fromkeys(tuple(row.prompt) for row in wanted))  # of `n` rows one
    scores = dict(zip(prompts, prompt_logprobs(params, list(map(list, prompts))), strict=True))
    found: list[list[TokenLogprob | None] | None] = [None] * len(rows)
    for row in wanted:
        k = row.settings.prompt_logprobs
        found[row.index] = [None, *(entry.first(k or 0) for entry in scores[tuple(row.prompt)])]
    return found


def _shown(params: Params, rows: list[Row], tokenizer: Tokenizer | None) -> Iterator[Batch]:
    """The batches, with a progress bar where there are several and somebody watches."""
    from rich.console import Console
    from rich.progress import Progress

    console, bar = Console(stderr=True), None
    with contextlib.ExitStack() as stack:
        for batch in batches_of(params, rows, tokenizer):
            if bar is None and console.is_terminal and len(batch.rows) < len(rows):
                bar = stack.enter_context(Progress(console=console, transient=True))
                task = bar.add_task("completions", total=len(rows))
            yield batch
            if bar is not None:
                bar.update(task, advance=len(batch.rows))
