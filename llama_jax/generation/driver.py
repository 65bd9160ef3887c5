"""The host's side of decoding: it runs the two programs, fetches tokens, and makes text."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from llama_jax.generation import loop
from llama_jax.generation.batch import Batch
from llama_jax.generation.guide import allowed_words
from llama_jax.generation.limits import (
    NO_LIMIT,
    PREFILL_TOKENS_A_ROW,
    STOP_STRING_TOKENS,
    doubled_slots,
    tokens_per_read,
    tokens_per_round,
)
from llama_jax.generation.placement import Placement
from llama_jax.generation.results import Delta, NaNLogitsError
from llama_jax.generation.row_writer import RowWriter
from llama_jax.generation.sample import BatchSettings
from llama_jax.generation.state import DecodeState, NewCache, TokenBuffer
from llama_jax.kernels import COMPILER_OPTIONS
from llama_jax.model.cache import Cache
from llama_jax.untraced import compiled, runner
from llama_jax.weights.params import Params

prefill = jax.jit(
    loop.prefill,
    static_argnames="tokens_per_read",
    donate_argnames="cache",
    compiler_options=COMPILER_OPTIONS,
)
decode = jax.jit(
    loop.decode,
    static_argnames="tokens_per_check",
    donate_argnames="state",
    compiler_options=COMPILER_OPTIONS,
)


def grow(place: Placement, cache: Cache, slots: int) -> Cache:
    """The same past with room for `slots` positions a row."""
    with place.use_mesh():
        return _grow(cache, slots=slots)


_grow = jax.jit(lambda cache, slots: cache.grown(slots), static_argnames="slots")


class Prefill(NamedTuple):
    """The arguments of one call of `prefill`, in its order."""

    params: Params
    cache: Cache | NewCache
    texts: np.ndarray
    lengths: np.ndarray
    read: np.int32
    settings: BatchSettings
    tokens_per_read: int

    def run(self) -> DecodeState:
        """Reads the prompts: each row then has its first new token. The cache is donated.

        Call it in the mesh's context (`Placement.use_mesh`).
        """
        *arguments, tokens = self
        return runner(prefill, *arguments, tokens_per_read=tokens)(*arguments)

    def compiled(self) -> Any:
        """The program that `run` runs."""
        *arguments, tokens = self
        return compiled(prefill, *arguments, tokens_per_read=tokens)


def prefill_of(params: Params, place: Placement, batch: Batch) -> Prefill:
    """What reads a batch into a cache of its own."""
    rows, time = batch.prompts.shape
    in_all = place.limits.prefill_tokens
    return Prefill(
        params,
        cache=NewCache(place.cache, rows, batch.slots, place.cache_dtype),
        texts=batch.prompts,
        lengths=batch.lengths,
        read=np.int32(0),
        settings=batch.settings,
        tokens_per_read=tokens_per_read(rows, time, in_all=in_all, a_row=PREFILL_TOKENS_A_ROW),
    )


def compile_ahead(place: Placement, first: Prefill) -> Iterator[None]:
    """Compiles a call of `prefill`, then `decode` for what it gives; yields after each.

    A program that is compiled already is not compiled again. The weights may be
    `jax.ShapeDtypeStruct`s, which need not be loaded: JAX remembers a program by shapes and
    devices.
    """
    with place.use_mesh():
        made = first.compiled()
    yield
    params, settings = first.params, first.settings
    # Where weights lie by default, so does what is made of them; that is another program.
    chosen = getattr(jax.tree.leaves(params.weights)[0], "committed", True)
    with place.use_mesh():
        state = jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(
                x.shape, x.dtype, sharding=sharding if chosen else None, weak_type=x.weak_type
            ),
            made.out_info,
            made.output_shardings,
        )
        taken, until = np.zeros(len(first.lengths), np.int32), np.int32(1)
        check = _tokens_per_check(place, settings)
        compiled(decode, params, state, settings, taken, until, tokens_per_check=check)
    yield


def decode_rows(
    params: Params,
    place: Placement,
    writers: Sequence[RowWriter],
    settings: BatchSettings,
    read: Callable[[], DecodeState],
    *,
    stream: bool,
) -> Iterator[tuple[int, Delta, DecodeState | None]]:
    """Decodes rows to their ends; yields each row's place, its gain, and the state.

    `read` reads the prompts. Where no row wants a token nothing is read, and there is no state.

    With `stream` rows gain tokens as they come, the first before the loop is compiled; otherwise as
    many as the device keeps. `NaNLogitsError`, once all rows have ended, where the logits of some
    were no numbers.
    """
    if not any(writer.row.max_new_tokens for writer in writers):
        yield from ((i, writer.nothing(), None) for i, writer in enumerate(writers))
        return
    with place.use_mesh():
        state, program = read(), None
    check = _tokens_per_check(place, settings)
    often = tokens_per_round(place.limits, params.nbytes)
    one_by_one = stream or settings.allowed is not None
    pause, until = (check, 1) if one_by_one else _pauses(writers, often)
    taken: Any = np.zeros(len(settings.max_new_tokens), np.int32)
    while not all(writer.ended for writer in writers):
        if until > 1:
            arguments = params, state, settings, taken, np.int32(until)
            with place.use_mesh():
                program = program or runner(decode, *arguments, tokens_per_check=check)
                state = program(*arguments)
        if not taken.any():  # long prompts may still be read, and rounds are short
            wait_for(state.buffer)
        buffer: TokenBuffer = jax.device_get(state.buffer)
        for i, writer in enumerate(writers):
            if not writer.ended:
                yield i, writer.take(buffer, i), state
        taken, until = buffer.count, min(until + pause, NO_LIMIT)
        settings = _guided(place, _without_ended(place, settings, writers), writers)
        going = [writer for writer in writers if not writer.ended]
        ends = [len(writer.row.prompt) + writer.count for writer in going]
        if max(ends, default=0) > state.cache.slots:  # the newest token has no slot
            slots = doubled_slots(state.cache.slots, params.config.max_seq_len)
            state = dataclasses.replace(state, cache=grow(place, state.cache, slots))
            program = None  # another one, of that size
    if failed := [writer.row.index for writer in writers if writer.failed]:
        # A NaN in a slot that is masked still makes a NaN, so nobody may go on from this cache.
        jax.tree.map(lambda x: x.delete(), state.cache)
        raise NaNLogitsError("row", failed)


def _tokens_per_check(place: Placement, settings: BatchSettings) -> int:
    """The platform's number, or 1 where a constraint decides on the host what each token may be."""
    return 1 if settings.allowed is not None else place.limits.tokens_per_check


def _pauses(writers: Sequence[RowWriter], often: int) -> tuple[int, int]:
    """The tokens between two looks of the host, and before its first look.

    For stop strings it looks often, because only the text tells where one is.
    """
    if any(writer.row.settings.stop for writer in writers):
        often = min(often, STOP_STRING_TOKENS)
    return often, min(often, max(writer.row.max_new_tokens for writer in writers))


def wait_for(buffer: TokenBuffer) -> None:
    """Waits for the device in Python, where Ctrl-C is heard; JAX's own wait is deaf to it."""
    started, last = time.monotonic(), buffer.count  # all are ready at once
    while not last.is_ready():  # type: ignore[attr-defined]  # a jax.Array, to mypy without it
        time.sleep((time.monotonic() - started) / 200)  # half a percent too long at most


def _without_ended(
    place: Placement, settings: BatchSettings, writers: Sequence[RowWriter]
) -> BatchSettings:
    """The settings, with no more tokens for rows that the host ended, at a stop string say.

    The device does not know of these stops. Such a row then idles, at no cost to the others.
    """
    over = [i for i, w in enumerate(writers) if w.stopped_by_host]
    if not over:
        return settings
    wanted = np.array(jax.device_get(settings.max_new_tokens))
    if not wanted[over].any():
        return settings
    wanted[over] = 0
    return dataclasses.replace(settings, max_new_tokens=place.put(wanted))


def _guided(
    place: Placement, settings: BatchSettings, writers: Sequence[RowWriter]
) -> BatchSettings:
    """The settings, with what each row's constraint allows next."""
    if settings.allowed is None:
        return settings
    rows, vocab_size = settings.bias.shape
    words = allowed_words([writer.guide for writer in writers], rows, vocab_size)
    return dataclasses.replace(settings, allowed=place.put(words))
