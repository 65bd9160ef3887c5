"""Runs batches of rows, and joins the deltas of each row to a completion."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence

from llama_jax.generation.asked import Asked
from llama_jax.generation.batch import Row, batches_of, grouped
from llama_jax.generation.driver import compile_ahead, decode_rows, prefill_of
from llama_jax.generation.placement import Placement
from llama_jax.generation.progress import progress
from llama_jax.generation.results import Completion, Delta, NaNLogitsError, TokenLogprob
from llama_jax.generation.row_writer import RowWriter
from llama_jax.generation.score import has_nan, prompt_logprobs
from llama_jax.tokenizer import Tokenizer, detokenize
from llama_jax.weights.params import Params

Gains = Iterator[tuple[Row, Delta]]
"""Pairs of a row and its new text, as it comes. The last delta of a failed row says so."""


def by_batches(params: Params, asked: Asked, *, stream: bool) -> Gains:
    """The rows in batches of like length, one batch after the other.

    With `stream` they gain tokens as they come, otherwise as many as the device keeps.
    """
    rows, place, tokenizer = asked
    for batch in batches_of(params.config, place, rows):
        writers = [RowWriter(row, tokenizer) for row in batch.rows]
        read = prefill_of(params, place, batch).run
        with contextlib.suppress(NaNLogitsError):  # the deltas say so too
            for i, delta, _ in decode_rows(
                params, place, writers, batch.settings, read, stream=stream
            ):
                yield batch.rows[i], delta


def prepare_batches(params: Params, asked: Asked) -> Iterator[None]:
    """Compiles what the first batch will run; yields after each of the two programs."""
    batch = next(batches_of(params.config, asked.place, asked.rows))
    yield from compile_ahead(asked.place, prefill_of(params, asked.place, batch))


def completed(
    params: Params, asked: Asked, gains: Gains | None = None
) -> Iterator[tuple[Row, Completion]]:
    """Each row's completion as soon as it ends; that of a failed row says so.

    `gains` are what the rows gain, by batches unless given.
    """
    rows, place, tokenizer = asked
    scored = _prompt_logprobs(params, place, rows)
    deltas: dict[int, list[Delta]] = {row.index: [] for row in rows}
    several = len(next(grouped(params.config, place, rows), [])) < len(rows)
    with progress(len(rows)) if several else contextlib.nullcontext(lambda: None) as one_ended:
        for row, delta in gains or by_batches(params, asked, stream=False):
            deltas[row.index].append(delta)
            if delta.finish_reason is not None:
                spelled, entries = tokenizer is not None, scored[row.index]
                parts = deltas.pop(row.index)
                done = Completion.of(parts, spelled=spelled, prompt_logprobs=entries)
                if has_nan(entry for entry in entries or () if entry is not None):
                    done = dataclasses.replace(done, finish_reason="error")
                yield row, done
                one_ended()


def in_order(done: Sequence[tuple[Row, Completion]]) -> list[Completion]:
    """The completions in the order of their rows; NaNLogitsError where some failed."""
    completions = [one for _, one in sorted(done, key=lambda pair: pair[0].index)]
    failed = [i for i, one in enumerate(completions) if one.finish_reason == "error"]
    if failed:
        raise NaNLogitsError("completion", failed, completions)
    return completions


def echoed(completion: Completion, row: Row, tokenizer: Tokenizer | None) -> Completion:
    """A completion whose text and tokens begin with the prompt's."""
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
