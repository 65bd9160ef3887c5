"""Continuous batching: requests come and go, and all that are there are decoded together."""

from __future__ import annotations

import dataclasses
import secrets
import threading
import time
from typing import Any

from llama_jax.generation.batch import Row, rows_of
from llama_jax.generation.constraint import Constraint
from llama_jax.generation.limits import NO_LIMIT, limits_on
from llama_jax.generation.prompts import Prompt, tokenizer_of
from llama_jax.generation.results import Delta
from llama_jax.generation.settings import SamplingSettings, for_each
from llama_jax.model.paged import PAGE
from llama_jax.model.placement import Placement
from llama_jax.serve.device import Device
from llama_jax.serve.line import Line
from llama_jax.serve.pages import Pages
from llama_jax.serve.pool import pages_of_pool
from llama_jax.serve.rounds import Rounds
from llama_jax.serve.scheduler import Scheduler
from llama_jax.serve.stream import (
    EngineClosedError,
    QueueFullError,
    RequestFailedError,
    Stream,
    notify,
)
from llama_jax.serve.writing import Writing
from llama_jax.tokenizer import Tokenizer
from llama_jax.weights.params import Params

IDLE_SECONDS = 0.5
"""How long the thread sleeps where there is nothing to do; then it shows that it lives."""
ROUNDS_IN_FLIGHT = 2
"""The one that is being dispatched, and the one whose tokens are not known yet."""


@dataclasses.dataclass(frozen=True)
class Stats:
    """What an engine does, and has done since its start."""

    running: int
    """Completions that have a seat."""
    waiting: int
    """Requests that have none yet."""
    pages: int
    """Pages of 64 tokens for keys and values."""
    used_pages: int
    prompt_tokens: int
    """Tokens of prompts, those included that were `cached_tokens`."""
    cached_tokens: int
    """Tokens of prompts that were not read, because their keys and values were there."""
    new_tokens: int
    preemptions: int
    """How often a completion lost its pages to an older one, and was read again."""
    nan_rows: int
    """Completions whose logits were NaN or infinite."""


class Engine:
    """Completions of many requests at once: `Engine(params).submit("Once", temperature=0)`.

    A request's tokens do not depend on what runs beside it, and in float32 they are those of
    `generate`: logits differ by rounding alone. With `exact` a request's log-probabilities are the
    same to the bit in every company. Close it, or use it in a `with`.
    """

    def __init__(
        self,
        params: Params,
        *,
        tokenizer: Tokenizer | None = None,
        rows: int | None = None,
        cache_bytes: int | None = None,
        exact: bool = False,
        share_prefixes: bool = True,
        max_queued: int = 256,
        max_queued_tokens: int | None = None,
    ) -> None:
        """Takes up to `rows` completions on together (16 on a CPU, 128 on a GPU).

        Their keys and values lie in pages, `cache_bytes` in all; by default as many as fit. With
        `share_prefixes` texts that begin alike have the pages of the beginning in common.
        `max_queued` requests may wait for a seat, with `max_queued_tokens` in their prompts.

        ValueError where the params are on a mesh with other axes than `tensor`.
        """
        self.params = params
        self.tokenizer = tokenizer_of(params, tokenizer)
        place = Placement.of(params)
        if place.batch_divisor > 1:
            raise ValueError(
                f"an engine runs on a mesh of tensor alone, and this one has {place.mesh}; put the "
                "devices on tensor, or run one engine each"
            )
        limits = limits_on(place.platform)
        seats = limits.seats if rows is None else rows
        pages = pages_of_pool(params, place, seats, cache_bytes, limits.turn_tokens)
        self.config = params.config.replace(
            max_seq_len=min(params.config.max_seq_len, pages * PAGE)
        )
        """The model's, with the longest text that fits in the cache."""
        self._device = Device(params, place, seats=seats, pages=pages, exact=exact)
        self._scheduler = Scheduler(
            Pages(pages, PAGE),
            seats,
            chunk=self._device.chunk,
            width=self._device.width,
            lookahead=ROUNDS_IN_FLIGHT * self._device.tokens,
            exact=exact,
        )
        self._rounds = Rounds(self._device, self._scheduler)
        self._shares = share_prefixes
        self._max_queued = max_queued, NO_LIMIT if max_queued_tokens is None else max_queued_tokens
        self._asked = threading.Condition()
        self._new: list[list[Writing]] = []
        self._cancelled: list[Stream] = []
        self._closing = False
        self._beat = time.monotonic()
        self.ready = False
        """Whether the first programs are compiled."""
        self.failure: BaseException | None = None
        """Why the engine ended, where it was not closed."""
        self._thread = threading.Thread(target=self._run, name="llama_jax engine", daemon=True)
        self._thread.start()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close(0)

    @property
    def heartbeat(self) -> float:
        """Seconds since the engine's thread last went round. When idle it is below one."""
        return time.monotonic() - self._beat

    def submit(
        self,
        prompt: Prompt,
        settings: SamplingSettings | None = None,
        *,
        n: int = 1,
        cache_salt: str = "",
        constraint: Constraint | None = None,
        **changes: Any,
    ) -> Stream:
        """Asks for `n` completions of a prompt: a text, ids, or a dialog. From any thread.

        Settings are those of `generate`. Requests share the beginnings of their prompts only where
        they have one `cache_salt`. A `constraint` bounds what each completion may be.

        ValueError where a prompt is empty, too long or not the model's. QueueFullError where too
        many wait, and EngineClosedError.
        """
        (wanted,) = for_each(settings, changes, 1)
        rows = rows_of(self.config, [prompt], [wanted], n, self.tokenizer, truncate=False)
        stream = Stream(rows[0].prompt, n, lambda: self._cancel(stream), self.tokenizer is not None)
        salt = cache_salt.encode() if self._shares else secrets.token_bytes(16)
        writings = [self._writing(row, stream, salt, constraint) for row in rows]
        with self._asked:
            self._check_open()
            self._check_room(writings[0].line)
            self._new.append(writings)
            self._asked.notify()
        return stream

    def close(self, seconds: float | None = None) -> None:
        """Takes no more requests, and waits for those that it has, at most so long; the others
        end then with an EngineClosedError."""
        with self._asked:
            self._closing = True
            self._asked.notify()
        self._thread.join(seconds)
        if self._thread.is_alive():
            with self._asked:
                self._cancelled += [w.stream for writings in self._new for w in writings]
                self._cancelled += self._rounds.streams()
                self._asked.notify()
            self._thread.join()

    def stats(self) -> Stats:
        """What it does now, and has done so far."""
        scheduler, counts = self._scheduler, self._rounds.counts
        return Stats(
            running=len(scheduler.running),
            waiting=scheduler.waiting + len(self._new),
            pages=scheduler.pages.count,
            used_pages=scheduler.pages.used,
            preemptions=scheduler.preemptions,
            **dataclasses.asdict(counts),
        )

    def _writing(
        self, row: Row, stream: Stream, salt: bytes, constraint: Constraint | None
    ) -> Writing:
        line = Line(
            row.prompt,
            row.max_new_tokens,
            salt,
            index=row.index,
            whole=row.settings.prompt_logprobs is not None and row.index == 0,
            waits=constraint is not None,
        )
        own = None if constraint is None else constraint.copy()
        self._scheduler.check(line)
        return Writing(line, row, stream, self.tokenizer, own)

    def _check_open(self) -> None:
        if self.failure is not None:
            raise EngineClosedError(f"the engine failed: {self.failure}")
        if self._closing:
            raise EngineClosedError("the engine is closing; send the request elsewhere")

    def _check_room(self, line: Line) -> None:
        """QueueFullError where another request may not wait."""
        most, most_tokens = self._max_queued
        waiting = self._scheduler.waiting + len(self._new)
        tokens = self._scheduler.waiting_tokens + sum(len(w[0].line.prompt) for w in self._new)
        if waiting >= most or (waiting and tokens + len(line.prompt) > most_tokens):
            raise QueueFullError(
                f"{waiting} requests with {tokens} tokens wait already; try again later", 1.0
            )

    def _cancel(self, stream: Stream) -> None:
        with self._asked:
            self._cancelled.append(stream)
            self._asked.notify()

    def _run(self) -> None:
        """The thread. It ends when the engine is closed, or when a second step fails."""
        rest = threading.Thread(target=self._compile_rest, daemon=True)
        try:
            self._device.compile_first()
            self.ready = True
            rest.start()
            failed = False
            while self._take_asked():
                try:
                    self._rounds.turn()
                    failed = False
                except Exception as error:
                    if failed:
                        raise
                    failed = True
                    self._rounds.fail(error)
        except BaseException as error:
            self.failure = error
            self._end_all(RequestFailedError(f"the engine failed: {error}"))
        finally:
            self.ready = False
            self._closing = True
            if rest.is_alive():  # Python may not end inside a compilation
                rest.join()

    def _compile_rest(self) -> None:
        for _ in self._device.compile_rest():
            if self._closing:
                return

    def _take_asked(self) -> bool:
        """Takes new requests and cancels; waits where there is nothing to do. False at the end."""
        with self._asked:
            self._beat = time.monotonic()
            while not (self._new or self._cancelled or self._closing) and self._rounds.idle:
                self._asked.wait(IDLE_SECONDS)
                self._beat = time.monotonic()
            new, self._new = self._new, []
            cancelled, self._cancelled = self._cancelled, []
        for writings in new:
            for writing in writings:
                self._rounds.add(writing)
        if cancelled:
            self._rounds.end(cancelled, EngineClosedError("the engine is closed") if self._closing else None)
        return not (self._closing and self._rounds.idle)

    def _end_all(self, error: BaseException) -> None:
        with self._asked:
            streams = [w.stream for writings in self._new for w in writings]
            self._new = []
        self._rounds.end([*streams, *self._rounds.streams()], error)
