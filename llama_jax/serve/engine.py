"""Continuous batching: requests come and go, and all that are there are decoded together."""

from __future__ import annotations

import dataclasses
import secrets
import threading
import time
from typing import Any

from llama_jax.generation.batch import Row, rows_of
from llama_jax.generation.constraint import Constraint
from llama_jax.generation.limits import NO_LIMIT
from llama_jax.generation.prompts import Prompt, tokenizer_of
from llama_jax.generation.row_writer import RowWriter
from llama_jax.generation.settings import SamplingSettings, for_each
from llama_jax.model.cache import Cache, KVCache
from llama_jax.model.paged import PAGE
from llama_jax.serve.device import Device
from llama_jax.serve.inbox import Inbox
from llama_jax.serve.line import Line
from llama_jax.serve.pages import Pages
from llama_jax.serve.programs import Programs
from llama_jax.serve.rounds import ROUNDS_IN_FLIGHT, Rounds
from llama_jax.serve.scheduler import Scheduler
from llama_jax.serve.stats import Stats
from llama_jax.serve.stream import (
    EngineClosedError,
    QueueFullError,
    RequestFailedError,
    Stream,
)
from llama_jax.serve.writing import Writing
from llama_jax.tokenizer import Tokenizer
from llama_jax.weights.params import Params


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
        cache: type[Cache] = KVCache,
        exact: bool = False,
        share_prefixes: bool = True,
        max_queued: int = 256,
        max_queued_tokens: int | None = None,
    ) -> None:
        """Takes up to `rows` completions on together (16 on a CPU, 128 on a GPU).

        Their keys and values lie in pages, `cache_bytes` in all; by default as many as fit. They
        are kept as `cache` keeps them: with Int8KVCache a page takes a quarter of float32's. With
        `share_prefixes` texts that begin alike have the pages of the beginning in common.
        `max_queued` requests may wait for a seat, with `max_queued_tokens` in their prompts.

        ValueError where the params are on a mesh with other axes than `tensor`, or a cache has no
        form in pages.
        """
        self.params = params
        self.tokenizer = tokenizer_of(params, tokenizer)
        programs = self.programs = Programs.of(
            params, rows=rows, cache_bytes=cache_bytes, cache=cache, exact=exact
        )
        self.config = params.config.replace(
            max_seq_len=min(params.config.max_seq_len, programs.pages * PAGE)
        )
        """The model's, with the longest text that fits in the cache."""
        self._scheduler = Scheduler(
            Pages(programs.pages, PAGE),
            programs.seats,
            chunk=programs.chunk,
            width=programs.width,
            lookahead=ROUNDS_IN_FLIGHT * programs.tokens,
            exact=exact,
        )
        self.device = Device(programs)
        """The seats and the pages. The engine's thread alone calls it."""
        self._rounds = Rounds(self.device, self._scheduler)
        self._shares = share_prefixes
        self._max_queued = max_queued, NO_LIMIT if max_queued_tokens is None else max_queued_tokens
        self._inbox = Inbox()
        self._full = threading.Lock()
        self.ready = False
        """Whether the first programs are compiled."""
        self.compiling = True
        """Whether a program is being compiled that no request waits for. To close waits for it."""
        self._cut = False
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
        return time.monotonic() - self._inbox.beat

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
        stream = Stream(rows[0].prompt, n, self._inbox.cancel, self.tokenizer is not None)
        salt = cache_salt.encode() if self._shares else secrets.token_bytes(16)
        rows = [dataclasses.replace(row, constraint=constraint) for row in rows]
        writings = [self._writing(row, stream, salt) for row in rows]
        if self.failure is not None:
            raise EngineClosedError(f"the engine failed: {self.failure}")
        with self._full:
            self._check_room(rows[0].prompt)
            self._inbox.put(writings)
        return stream

    def close(self, seconds: float | None = None) -> None:
        """Takes no more requests, and waits for those that it has, at most so long; the others
        end then with an EngineClosedError."""
        self._inbox.close()
        self._thread.join(seconds)
        self._cut = True
        self._thread.join()

    def stats(self) -> Stats:
        """What it does now, and has done so far."""
        scheduler, counts = self._scheduler, self._rounds.counts
        return Stats(
            running=len(scheduler.running),
            waiting=scheduler.waiting + self._inbox.requests,
            pages=scheduler.pages.count,
            used_pages=scheduler.pages.used,
            preemptions=scheduler.preemptions,
            **dataclasses.asdict(counts),
        )

    def _writing(self, row: Row, stream: Stream, salt: bytes) -> Writing:
        writer = RowWriter(row, self.tokenizer)
        over = writer.guide is not None and writer.guide.over is not None
        line = Line(
            row.prompt,
            0 if over else row.max_new_tokens,
            salt,
            index=row.index,
            whole=row.settings.prompt_logprobs is not None and row.index == 0,
            waits=row.constraint is not None,
        )
        self._scheduler.check(line)
        return Writing(line, writer, stream)

    def _check_room(self, prompt: list[int]) -> None:
        """QueueFullError where another request may not wait."""
        most, most_tokens = self._max_queued
        waiting = self._scheduler.waiting + self._inbox.requests
        tokens = self._scheduler.waiting_tokens + self._inbox.tokens
        if waiting >= most or (waiting and tokens + len(prompt) > most_tokens):
            raise QueueFullError(
                f"{waiting} requests with {tokens} tokens wait already; try again later", 1.0
            )

    def _run(self) -> None:
        """The thread. It ends when the engine is closed, or when two steps fail in a row."""
        rest = threading.Thread(target=self._compile_rest, daemon=True)
        try:
            self.device.reset()
            self.programs.compile_first()
            self.ready = True
            rest.start()
            failed = False
            while self._takes_asked():
                try:
                    self._rounds.turn()
                    failed = False
                except Exception as error:
                    if failed:
                        raise
                    failed = True
                    self._rounds.fail(error)
        except BaseException as error:
            self.failure, self.compiling = error, rest.is_alive()
        finally:
            self.ready = False
            self._end_all()
            if rest.is_alive():  # Python may not end inside a compilation
                rest.join()

    def _takes_asked(self) -> bool:
        """Takes what was asked, and waits for it where there is nothing else to do."""
        asked = self._inbox.take(wait=self._rounds.idle)
        for request in asked.new:
            for writing in request:
                self._rounds.add(writing)
        self._rounds.end(asked.cancelled)
        return not (self._inbox.closed and (self._cut or self._rounds.idle))

    def _end_all(self) -> None:
        """Ends all requests that are there when the thread ends."""
        self._inbox.close()
        error: Exception = EngineClosedError("the engine was closed")
        if self.failure is not None:
            error = RequestFailedError(f"the engine failed: {self.failure}")
        asked = self._inbox.take(wait=False)
        self._rounds.end([request[0].stream for request in asked.new], error)
        self._rounds.end(self._rounds.streams(), error)

    def _compile_rest(self) -> None:
        for _ in self.programs.compile_rest():
            if self._inbox.closed:
                break
        self.compiling = False
