"""Prompts to completions: all at once, or as they come."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from llama_jax.batches import Batch, Prompt, Row, batches_of, rows_of, tokenizer_of
from llama_jax.params import Params
from llama_jax.sample import Decoding, advance, decode, prefill
from llama_jax.score import TokenLogprob, prompt_logprobs
from llama_jax.settings import SamplingSettings, for_each
from llama_jax.sharding import on_mesh_of
from llama_jax.spelling import Speller
from llama_jax.tokenizer import Tokenizer

FinishReason = Literal["stop", "length"]


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


@dataclasses.dataclass(frozen=True)
class Delta:
    """What one row of a stream gained."""

    row: int
    text: str
    """Certain text only: half a character, or half a stop string, waits for the rest."""
    tokens: list[int]
    logprobs: list[TokenLogprob] | None
    finish_reason: FinishReason | None
    """Set on a row's last delta, and there alone."""


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

    Compiled once per batch size, prompt length and room for new tokens, each rounded up to a power
    of two. No other setting compiles anything.
    """
    tokenizer = tokenizer_of(params, tokenizer)
    rows = _rows(params, prompts, settings, changes, n, tokenizer, truncate)
    completions = complete(params, rows, tokenizer)
    if not echo:
        return completions
    return [_echoed(done, row, tokenizer) for done, row in zip(completions, rows, strict=True)]


def complete(params: Params, rows: list[Row], tokenizer: Tokenizer | None) -> list[Completion]:
    """The rows' completions, in their order, batch by batch."""
    scored = _prompt_logprobs(params, rows)
    found: list[Completion | None] = [None] * len(rows)
    for batch in _shown(params, rows):
        if any(row.settings.stop for row in batch.rows):
            written = _written_with_stops(params, batch, tokenizer)
        else:
            written = _written(params, batch, tokenizer)
        for row, completion in zip(batch.rows, written, strict=True):
            found[row.index] = dataclasses.replace(completion, prompt_logprobs=scored[row.index])
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
    rows = _rows(params, prompts, settings, changes, n, tokenizer, truncate)
    return _stream(params, rows, tokenizer)


def _rows(
    params: Params,
    prompts: Sequence[Prompt],
    settings: SamplingSettings | Sequence[SamplingSettings] | None,
    changes: dict[str, Any],
    n: int,
    tokenizer: Tokenizer | None,
    truncate: bool,
) -> list[Row]:
    if isinstance(prompts, str):
        raise ValueError(f"prompts={prompts[:40]!r} is one text; pass a list: [text]")
    prompts = list(prompts)
    settings = SamplingSettings() if settings is None else settings
    each = for_each(settings, changes, len(prompts))
    return rows_of(params, prompts, each, n, tokenizer, truncate)


def _written(params: Params, batch: Batch, tokenizer: Tokenizer | None) -> list[Completion]:
    if all(row.budget == 0 for row in batch.rows):
        return [_completion(row, tokenizer, [], _no_logprobs(row), "length") for row in batch.rows]
    with on_mesh_of(params):
        state = decode(
            params,
            batch.prompts,
            batch.lengths,
            batch.request,
            **batch.sizes,
            chunk=chunk_of(params),
        )
    host = _Host(state)
    return [
        _completion(
            row,
            tokenizer,
            host.tokens[i, : host.count[i]].tolist(),
            host.logprobs(i, 0, row.settings.logprobs),
            "stop" if host.stopped[i] else "length",
        )
        for i, row in enumerate(batch.rows)
    ]


def _written_with_stops(
    params: Params, batch: Batch, tokenizer: Tokenizer | None
) -> list[Completion]:
    """Stop strings are met in text, so the loop pauses every few tokens for the host to look."""
    deltas: list[list[Delta]] = [[] for _ in batch.rows]
    for place, delta, _ in _decoded(params, batch, tokenizer, pause=16):
        deltas[place].append(delta)
    found = []
    for row, parts in zip(batch.rows, deltas, strict=True):
        tokens = [token for part in parts for token in part.tokens]
        logprobs = [entry for part in parts for entry in part.logprobs or []]
        text, reason = "".join(part.text for part in parts), parts[-1].finish_reason
        wanted = logprobs if row.settings.logprobs is not None else None
        found.append(Completion(text, tokens, reason or "length", wanted))
    return found


def _completion(
    row: Row,
    tokenizer: Tokenizer | None,
    tokens: list[int],
    logprobs: list[TokenLogprob] | None,
    reason: FinishReason,
) -> Completion:
    speller = Speller(tokenizer, row.spelled_after, row.settings.stop)
    text = "".join([speller.push(token) for token in tokens]) + speller.finish()
    return Completion(None if tokenizer is None else text, tokens, reason, logprobs)


def _no_logprobs(row: Row) -> list[TokenLogprob] | None:
    return None if row.settings.logprobs is None else []


def _echoed(completion: Completion, row: Row, tokenizer: Tokenizer | None) -> Completion:
    tokens = [*row.prompt, *completion.tokens]
    if tokenizer is None:
        return dataclasses.replace(completion, tokens=tokens)
    # Some tokenizers spell bos, which is no part of the text that was given.
    spelled = row.prompt[row.prompt[0] == tokenizer.bos_id :]
    text = tokenizer.decode(spelled) + (completion.text or "")
    return dataclasses.replace(completion, text=text, tokens=tokens)


def _stream(params: Params, rows: list[Row], tokenizer: Tokenizer | None) -> Iterator[Delta]:
    for batch in batches_of(params, rows):
        for _, delta, _ in _decoded(params, batch, tokenizer, pause=chunk_of(params)):
            yield delta


def _decoded(
    params: Params, batch: Batch, tokenizer: Tokenizer | None, pause: int
) -> Iterator[tuple[int, Delta, Decoding | None]]:
    """Decodes a batch `pause` tokens at a time; yields the gains with their places in the batch."""
    if all(row.budget == 0 for row in batch.rows):
        for i, row in enumerate(batch.rows):
            yield i, Delta(row.index, "", [], _no_logprobs(row), "length"), None
        return
    with on_mesh_of(params):
        state = _prefill(params, batch.prompts, batch.lengths, batch.request, **batch.sizes)
    yield from decoded_rows(params, batch.rows, batch.request, state, tokenizer, pause)


def decoded_rows(
    params: Params,
    rows: Sequence[Row],
    request: Any,
    state: Decoding,
    tokenizer: Tokenizer | None,
    pause: int,
) -> Iterator[tuple[int, Delta, Decoding]]:
    """Takes prefilled rows to their ends; yields what each gains, its place, and the state.

    The first round adds nothing to the prefill's token: it compiles the loop, so that from the
    first delta on no text waits for a compiler.
    """
    spellers = [Speller(tokenizer, row.spelled_after, row.settings.stop) for row in rows]
    given, ended = [0] * len(rows), [False] * len(rows)
    until, chunk = 1, chunk_of(params)
    while not all(ended):
        with on_mesh_of(params):
            state = _advance(params, state, request, jnp.array(until), chunk=chunk)
        host, told = _Host(state), False
        for i, row in enumerate(rows):
            if ended[i]:
                continue
            new = host.tokens[i, given[i] : host.count[i]].tolist()
            text, taken = spellers[i].push_all(new)
            ended[i] = bool(host.stopped[i]) or host.count[i] >= row.budget
            if spellers[i].stopped and not ended[i]:
                ended[i] = told = True
            text += spellers[i].finish() if ended[i] else ""
            reason: FinishReason = "stop" if host.stopped[i] or spellers[i].stopped else "length"
            logprobs = host.logprobs(i, given[i], row.settings.logprobs)
            logprobs = None if logprobs is None else logprobs[:taken]
            given[i] += len(new)
            ending = reason if ended[i] else None
            yield i, Delta(row.index, text, new[:taken], logprobs, ending), state
        if told:
            stopped = np.zeros(len(host.stopped), bool)
            stopped[: len(rows)] = ended
            state = dataclasses.replace(state, stopped=jnp.asarray(host.stopped | stopped))
        until += pause


class _Host:
    """The small arrays of a decoding, fetched in one transfer."""

    def __init__(self, state: Decoding) -> None:
        names = ("tokens", "count", "stopped", "logprobs", "top_ids", "top_logprobs")
        fetched = jax.device_get([getattr(state, name) for name in names])
        self.tokens, self.count, self.stopped, self._chosen, self._ids, self._tops = fetched

    def logprobs(self, row: int, start: int, k: int | None) -> list[TokenLogprob] | None:
        """Of a row's tokens from `start` on, with the `k` likeliest at each."""
        if k is None:
            return None
        return [
            TokenLogprob.of(
                self.tokens[row, i], self._chosen[row, i], self._ids[row, i, :k], self._tops[row, i]
            )
            for i in range(start, self.count[row])
        ]


def _prompt_logprobs(params: Params, rows: list[Row]) -> list[list[TokenLogprob | None] | None]:
    wanted = [row for row in rows if row.settings.prompt_logprobs is not None]
    with on_mesh_of(params):
        scores = prompt_logprobs(params, [row.prompt for row in wanted])
    found: list[list[TokenLogprob | None] | None] = [None] * len(rows)
    for row, score in zip(wanted, scores, strict=True):
        k = row.settings.prompt_logprobs
        found[row.index] = [None, *(entry.first(k or 0) for entry in score)]
    return found


def _shown(params: Params, rows: list[Row]) -> Iterator[Batch]:
    """The batches, with a progress bar where there are several and somebody watches."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    done = 0
    with contextlib.ExitStack() as stack:
        for batch in batches_of(params, rows):
            if console.is_terminal and len(batch.rows) < len(rows) and not done:
                bar = stack.enter_context(Progress(console=console, transient=True))
                task = bar.add_task("completions", total=len(rows))
            yield batch
            done += len(batch.rows)
            if console.is_terminal and len(batch.rows) < len(rows):
                bar.update(task, completed=done)


_prefill = jax.jit(prefill, static_argnames=("room", "slots"))
_advance = jax.jit(advance, static_argnames="chunk", donate_argnames="state")


def chunk_of(params: Params) -> int:
    """Tokens between two questions whether to go on: free on CPU, a stall on an accelerator."""
    leaf = jax.tree.leaves(params.weights)[0]
    return 1 if next(iter(leaf.devices())).platform == "cpu" else 8
