"""What a request gives back: its completions as they come, in a thread or in an event loop."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any

from llama_jax.generation.limits import GRAMMAR_REQUEST_SECONDS, GRAMMAR_TOKEN_SECONDS
from llama_jax.generation.results import Completion, Delta, NaNLogitsError, TokenLogprob


class EngineClosedError(RuntimeError):
    """The engine takes no requests any more."""


class RequestFailedError(RuntimeError):
    """A step of the engine failed, and this request with it."""


class UnfollowableError(RequestFailedError):
    """No text goes on as the request's schema, regex or grammar asks, or too much work finds it."""


class QueueFullError(RuntimeError):
    """As many requests wait as the engine takes."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        """Seconds after which there will probably be room."""

    def __reduce__(self) -> Any:
        return type(self), (self.args[0], self.retry_after)


class Stream:
    """The completions of one request, row 0 to n - 1, as they come.

    Iterate over it in a thread (`for`) or in an event loop (`async for`), once: an item is a
    `Delta`, as `llama_jax.stream` yields them. The iteration ends when all rows have ended. It
    raises where the engine ended the request: EngineClosedError, RequestFailedError.
    """

    def __init__(
        self, prompt: list[int], n: int, cancel: Callable[[Stream], None], text: bool = True
    ) -> None:
        self.prompt = prompt
        """The prompt's ids."""
        self.cached_tokens = 0
        """Tokens of the prompt whose keys and values were there already. Known with the first
        item."""
        self.prompt_logprobs: list[TokenLogprob | None] | None = None
        """One entry for each token of the prompt, if the settings asked for them; None for the
        first. There with the first item."""
        self._cancel, self._has_text = cancel, text
        self.n = n
        self._seconds = GRAMMAR_REQUEST_SECONDS
        self.going = n
        """Completions that have not ended."""
        self._items: deque[Delta | BaseException] = deque()
        self._changed = threading.Condition()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._event: asyncio.Event | None = None

    def cancel(self) -> None:
        """Ends the request within a round; its iteration ends with what was there. Idempotent.

        Call it where you leave an iteration before its end: the engine goes on otherwise.
        """
        self._cancel(self)

    def __iter__(self) -> Iterator[Delta]:
        while True:
            with self._changed:
                while not self._items and self.going:
                    self._changed.wait()
            if not self._items:
                return
            yield self._next()

    async def __aiter__(self) -> AsyncIterator[Delta]:
        self._event, self._loop = asyncio.Event(), asyncio.get_running_loop()
        while True:
            self._event.clear()
            for item in self.taken():
                yield item
            if not self.going and not self._items:
                return
            await self._event.wait()

    def taken(self) -> Iterator[Delta]:
        """What is there, without waiting for more."""
        while self._items:
            yield self._next()

    def completions(self) -> list[Completion]:
        """Waits for all rows; `NaNLogitsError`, with all of them, where some have failed.

        A row that was cancelled has what it wrote until then, and "cancelled" as finish_reason.
        """
        parts: dict[int, list[Delta]] = {row: [] for row in range(self.n)}
        for delta in self:
            parts[delta.row].append(delta)
        scored, spelled = self.prompt_logprobs, self._has_text
        found = [
            Completion.of(deltas, spelled=spelled, prompt_logprobs=scored)
            for deltas in parts.values()
        ]
        if failed := [i for i, one in enumerate(found) if one.finish_reason == "error"]:
            raise NaNLogitsError("completion", failed, found)
        return found

    def _next(self) -> Delta:
        item = self._items.popleft()
        if isinstance(item, BaseException):
            raise item
        return item

    # The engine's side.

    def put(self, item: Delta) -> None:
        """Another item, of which `notify` tells."""
        self._items.append(item)
        if item.finish_reason is not None:
            self.going -= 1

    def spend(self, seconds: float, tokens: int) -> None:
        """Its constraint took so long to look at so many tokens; ValueError once that is too much.

        All requests wait meanwhile, so a request has a budget, which its completions share.
        """
        self._seconds += tokens * GRAMMAR_TOKEN_SECONDS - seconds
        if self._seconds < 0:
            raise ValueError(
                "the schema, regex or grammar takes too much time to follow; make it simpler"
            )

    def end(self, error: BaseException | None = None) -> None:
        """No item follows."""
        if self.going and error is not None:
            self._items.append(error)
        self.going = 0


def notify(streams: Iterable[Stream]) -> None:
    """Tells those who wait that there are items: one call an event loop."""
    by_loop: dict[asyncio.AbstractEventLoop, list[asyncio.Event]] = {}
    for stream in streams:
        if stream._loop is not None and stream._event is not None:
            by_loop.setdefault(stream._loop, []).append(stream._event)
        else:
            with stream._changed:
                stream._changed.notify_all()
    for loop, events in by_loop.items():
        try:
            loop.call_soon_threadsafe(_set, events)
        except RuntimeError:  # its loop is closed, and nobody waits
            continue


def _set(events: Iterable[asyncio.Event]) -> None:
    for event in events:
        event.set()
