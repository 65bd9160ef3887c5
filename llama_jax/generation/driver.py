"""The host's side of decoding: it takes what each round decided, and spells it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import jax
import numpy as np

from llama_jax.compilation import OPTIONS
from llama_jax.generation.batch import Batch, Row, more_slots
from llama_jax.generation.loop import Decoding, Round, advance, prefill
from llama_jax.generation.sample import Request
from llama_jax.generation.score import TokenLogprob
from llama_jax.generation.text import Speller
from llama_jax.model.cache import KVCache
from llama_jax.sharding.arrays import cache_dtype, on_mesh_of, platform_of, replicated
from llama_jax.tokenizer import Tokenizer
from llama_jax.weights.params import Params

FinishReason = Literal["stop", "length"]
FOREVER = np.int32(2**31 - 1)
PREFILL_CHUNK = 512
"""Tokens of each prompt that are read at once, which bounds what attention holds."""
PREFILL_TOKENS = 1 << 14
"""Of all prompts together, on an accelerator: its kernel holds no scores, and takes only the first
tokens that are read of a prompt."""


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


def prepare_batch(params: Params, batch: Batch) -> Iterator[None]:
    """Compiles the two programs that decode a batch, or finds them compiled; yields after each.

    The weights may be `jax.ShapeDtypeStruct`s, which need not be loaded: JAX remembers a program
    by shapes and devices.
    """
    request = batch.request
    with on_mesh_of(params):
        first = _prefill.lower(
            params, batch.prompts, batch.lengths, request, **_sizes(params, batch)
        )
        made = first.compile()
    yield
    with on_mesh_of(params):
        state = jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(
                x.shape, x.dtype, sharding=sharding, weak_type=x.weak_type
            ),
            first.out_info,
            made.output_shardings,
        )
        taken = np.zeros(len(request.budget), np.int32)
        loop = _advance.lower(params, state, request, taken, np.int32(1), chunk=chunk_of(params))
        loop.compile()
    yield


def decoded(
    params: Params, batch: Batch, tokenizer: Tokenizer | None, pause: int | None
) -> Iterator[tuple[int, Delta]]:
    """Decodes a batch; yields what each row gains, and its place in the batch.

    `pause` is how many tokens the rows gain at a time: as many as a round holds where it is None.
    """
    if all(row.budget == 0 for row in batch.rows):
        for i, row in enumerate(batch.rows):
            logprobs: list[TokenLogprob] | None = None if row.settings.logprobs is None else []
            yield i, Delta(row.index, "", [], logprobs, "length")
        return
    with on_mesh_of(params):
        state = _prefill(
            params, batch.prompts, batch.lengths, batch.request, **_sizes(params, batch)
        )
    rounds = decoded_rows(params, batch.rows, batch.request, state, tokenizer, pause)
    yield from ((i, delta) for i, delta, _ in rounds)


def decoded_rows(
    params: Params,
    rows: Sequence[Row],
    request: Request,
    state: Decoding,
    tokenizer: Tokenizer | None,
    pause: int | None,
) -> Iterator[tuple[int, Delta, Decoding]]:
    """Takes prefilled rows to their ends; yields what each gains, its place, and the state.

    With a pause, the prefill's token is given out before the loop is compiled.
    """
    writers = [
        _Writer(row, Speller(tokenizer, row.spelled_after, row.settings.stop)) for row in rows
    ]
    taken: Any = np.zeros(len(request.budget), np.int32)
    budget = taken.copy()
    budget[: len(rows)] = [row.budget for row in rows]
    at_once = pause is None and max(row.budget for row in rows) > 1
    until, chunk = np.int32(FOREVER if at_once else 1), chunk_of(params)
    while not all(writer.ended for writer in writers):
        if until > 1:
            with on_mesh_of(params):
                state = _advance(params, state, request, taken, until, chunk=chunk)
        round: Round = jax.device_get(state.round)
        for i, writer in enumerate(writers):
            if not writer.ended:
                yield i, writer.take(round, i), state
        taken = round.count
        until = until if pause is None else np.int32(until + pause)
        # What only the host knows to be over: a stop string with U+FFFD, which stands for bytes
        # that are no character, is met in text alone.
        over = [w.ended and not round.stopped[i] for i, w in enumerate(writers)]
        if np.any(round.count[: len(over)][over] < budget[: len(over)][over]):
            budget[: len(over)][over] = 0
            request = dataclasses.replace(request, budget=replicated(params, budget))
        going = [writer for writer in writers if not writer.ended]
        ends = [len(writer.row.prompt) + writer.count for writer in going]
        if max(ends, default=0) > state.cache.slots:  # the newest token has no slot
            with on_mesh_of(params):
                cache = grown(state.cache, slots=more_slots(state.cache.slots, params.config))
            state = dataclasses.replace(state, cache=cache)


class _Writer:
    """One row's text as it grows. Host state."""

    def __init__(self, row: Row, speller: Speller) -> None:
        self.row, self.speller = row, speller
        self.count = 0
        self.ended = False

    def take(self, round: Round, i: int) -> Delta:
        """What the row gained in a round, where it is the `i`-th."""
        size, self.count = int(round.count[i]) - self.count, int(round.count[i])
        text, size = self.speller.push_all(round.tokens[i, :size].tolist())
        self.ended = bool(round.stopped[i]) or self.speller.stopped or self.count >= self.row.budget
        text += self.speller.finish() if self.ended else ""
        stopped = bool(round.stopped[i]) or self.speller.stopped
        reason: FinishReason = "stop" if stopped else "length"
        tokens = round.tokens[i, :size].tolist()
        logprobs = self._logprobs(round, i, size)
        return Delta(self.row.index, text, tokens, logprobs, reason if self.ended else None)

    def _logprobs(self, round: Any, i: int, size: int) -> list[TokenLogprob] | None:
        k = self.row.settings.logprobs
        if k is None:
            return None
        return [
            TokenLogprob.of(
                round.tokens[i, j],
                round.logprobs[i, j],
                round.top_ids[i, j, :k],
                round.top_logprobs[i, j],
            )
            for j in range(size)
        ]


def prefill_width(params: Params, prompts: np.ndarray) -> int:
    """Tokens of each prompt that are read at once."""
    rows, time = prompts.shape
    many = 0 if platform_of(params) == "cpu" else PREFILL_TOKENS // rows
    return min(time, max(PREFILL_CHUNK, many))


def chunk_of(params: Params) -> int:
    """Tokens between two questions whether to go on: free on CPU, a stall on an accelerator."""
    return 1 if platform_of(params) == "cpu" else 8


def _sizes(params: Params, batch: Batch) -> dict[str, Any]:
    """What is static of a prefill."""
    width = prefill_width(params, batch.prompts)
    return {"width": width, "slots": batch.slots, "dtype": cache_dtype(params)}


_prefill = jax.jit(prefill, static_argnames=("width", "slots", "dtype"), compiler_options=OPTIONS)
_advance = jax.jit(
    advance, static_argnames="chunk", donate_argnames="state", compiler_options=OPTIONS
)
grown = jax.jit(KVCache.grown, static_argnames="slots")
