"""One row as the host sees it: what it gained, as text, and why it ended."""

from __future__ import annotations

from collections.abc import Sequence

from llama_jax.generation.batch import Row
from llama_jax.generation.results import Delta, FinishReason, TokenLogprob
from llama_jax.generation.sample import NO_TOKEN
from llama_jax.generation.state import TokenBuffer
from llama_jax.generation.text import TextStream
from llama_jax.tokenizer import Tokenizer


class RowWriter:
    """One row's text as it grows. Host state."""

    def __init__(self, row: Row, tokenizer: Tokenizer | None) -> None:
        self.row = row
        stop, least = row.settings.stop, row.settings.min_new_tokens
        self.text = TextStream(tokenizer, row.context_ids, stop, least)
        self.guide = row.guide()
        self.count = 0
        """Tokens that the device decided, whether or not they are kept."""
        self.ended = self.failed = False

    @property
    def stopped_by_host(self) -> bool:
        """Whether the row ended in a way that the device does not know of."""
        return self.text.stopped or (self.guide is not None and self.guide.over is not None)

    def nothing(self) -> Delta:
        """What a row gains that asks for no token."""
        self.ended = True
        none: list[TokenLogprob] | None = None if self.row.settings.logprobs is None else []
        return Delta(self.row.index, "", [], none, "length")

    def take(self, buffer: TokenBuffer, i: int) -> Delta:
        """What the row gained since it was last asked, where it is row `i` of the buffer."""
        size, self.count = int(buffer.count[i]) - self.count, int(buffer.count[i])
        tokens = buffer.tokens[i, :size].tolist()
        text, kept = self.text.push_all(tokens)
        if self.guide is not None and not self.text.stopped:
            self.guide.take(tokens)
        met = int(buffer.tokens[i, size]) if buffer.stopped[i] else None
        at_end = self.stopped_by_host or self.count >= self.row.max_new_tokens
        self.ended = met is not None or at_end
        text += self.text.finish() if self.ended else ""
        if self.text.stopped:  # `finish` may find the stop string: what follows counts no more
            met = None
        self.failed = met == NO_TOKEN
        at_stop_id = met is not None and not self.failed
        ends = self._logprobs(buffer, i, [size]) if at_stop_id else None
        return Delta(
            self.row.index,
            text,
            buffer.tokens[i, :kept].tolist(),
            self._logprobs(buffer, i, range(kept)),
            self._reason(at_stop_id) if self.ended else None,
            met if at_stop_id else None,
            ends[0] if ends else None,
        )

    def _reason(self, at_stop_id: bool) -> FinishReason:
        if self.failed:
            return "error"
        if at_stop_id or self.text.stopped:
            return "stop"
        return (self.guide and self.guide.over) or "length"

    def _logprobs(
        self, buffer: TokenBuffer, i: int, places: Sequence[int]
    ) -> list[TokenLogprob] | None:
        k = self.row.settings.logprobs
        if k is None:
            return None
        return [
            TokenLogprob.of(
                buffer.tokens[i, j],
                buffer.logprobs[i, j],
                buffer.top_ids[i, j, :k],  # type: ignore[arg-type]  # fetched
                buffer.top_logprobs[i, j],  # type: ignore[arg-type]
            )
            for j in places
        ]
