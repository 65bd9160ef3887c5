"""One completion in progress: its place in the schedule, its text so far, and who reads it."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import numpy as np

from llama_jax.generation.results import Delta, FinishReason, TokenLogprob
from llama_jax.generation.row_writer import RowWriter
from llama_jax.generation.state import TokenBuffer
from llama_jax.serve.line import Line
from llama_jax.serve.scheduler import Read
from llama_jax.serve.seats import Echo
from llama_jax.serve.stream import Stream


class Writing:
    """A completion as the engine's thread sees it."""

    def __init__(self, line: Line, writer: RowWriter, stream: Stream) -> None:
        self.line, self.writer, self.stream = line, writer, stream
        self.row = writer.row
        self._guide = writer.guide
        self._echoed: list[TokenLogprob | None] = [None]

    @property
    def words(self) -> np.ndarray | None:
        """The mask of what its constraint allows next, if it has one."""
        return None if self._guide is None else self._guide.words

    def begin_again(self) -> None:
        """All tokens will be drawn once more, as an exact engine does after a preemption."""
        self._guide = self.row.guide()

    def take(self, buffer: TokenBuffer, i: int, given: list[int], new: list[int]) -> Delta | None:
        """What the completion gained by row `i` of a buffer, which gave it some tokens.

        The last of them are `new`. The others were there before and are drawn again. ValueError
        where its constraint cannot go on, or takes too long.
        """
        began = time.thread_time()
        if self._guide is not None and self._guide is not self.writer.guide:
            self._guide.take(given)
        delta = None
        if new or buffer.stopped[i]:
            again = len(given) - len(new)
            delta = self.writer.take(_without_first(buffer, again) if again else buffer, i)
        if self._guide is not None and (delta is None or delta.finish_reason is None):
            self.stream.spend(time.thread_time() - began, len(given))
        return delta

    def take_echo(self, echo: Echo, read: Read) -> None:
        """The log-probabilities of the prompt's tokens that follow those of a chunk."""
        k = self.row.settings.prompt_logprobs or 0
        del self._echoed[read.start + 1 :]  # of a prompt that is read again
        following = self.row.prompt[read.start + 1 : read.start + 1 + len(read.tokens)]
        for j, token in enumerate(following):
            ids: Any = echo.top_ids[0, j, :k]
            tops: Any = echo.top_logprobs[0, j]
            self._echoed.append(TokenLogprob.of(token, echo.logprobs[0, j], ids, tops))
        self.stream.prompt_logprobs = self._echoed

    def ended_without_tokens(self, failed: bool) -> Delta:
        """The last item of a completion that ends with its prompt."""
        over = None if self.writer.guide is None else self.writer.guide.over
        reason: FinishReason = "error" if failed else over or "length"
        logprobs: list[TokenLogprob] | None = None if self.row.settings.logprobs is None else []
        return Delta(self.row.index, self.writer.text.finish(), [], logprobs, reason)


def _without_first(buffer: TokenBuffer, places: int) -> TokenBuffer:
    """A buffer whose rows begin so many places later."""
    return dataclasses.replace(
        buffer,
        tokens=buffer.tokens[:, places:],
        logprobs=buffer.logprobs[:, places:],
        top_ids=buffer.top_ids[:, places:],
        top_logprobs=buffer.top_logprobs[:, places:],
    )
