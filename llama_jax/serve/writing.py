"""One completion in progress: its place in the schedule, its text so far, and who reads it."""

from __future__ import annotations

import dataclasses
from typing import Any

from llama_jax.generation.batch import Row
from llama_jax.generation.constraint import Constraint
from llama_jax.generation.results import Delta, FinishReason, TokenLogprob
from llama_jax.generation.row_writer import RowWriter
from llama_jax.generation.state import TokenBuffer
from llama_jax.serve.line import Line
from llama_jax.serve.scheduler import Read
from llama_jax.serve.seats import Echo
from llama_jax.serve.stream import Stream
from llama_jax.tokenizer import Tokenizer


class Writing:
    """A completion as the engine's thread sees it."""

    def __init__(
        self,
        line: Line,
        row: Row,
        stream: Stream,
        tokenizer: Tokenizer | None,
        constraint: Constraint | None,
    ) -> None:
        self.line, self.row, self.stream, self.constraint = line, row, stream, constraint
        self.writer = RowWriter(row, tokenizer)
        self._echoed: list[TokenLogprob | None] = [None]

    def take(self, buffer: TokenBuffer, i: int, given: int, new: list[int]) -> Delta:
        """What the completion gained by row `i` of a buffer: its first `given` tokens, of which
        the last are `new`. The others were there before: an exact engine draws some again.
        """
        if self.constraint is not None:
            for token in new:
                self.constraint.take(token)
        if again := given - len(new):
            buffer = _without_first(buffer, again)
        return self.writer.take(buffer, i)

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

    def ended_as(self, reason: FinishReason) -> Delta:
        """The last item of a completion that ends before the device says so."""
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
