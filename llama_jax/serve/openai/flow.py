"""Deltas of several streams as one, and what both kinds of answers share."""

from __future__ import annotations

import asyncio
import dataclasses
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING

from llama_jax.generation.results import Delta
from llama_jax.serve.metrics import Watch
from llama_jax.serve.openai.answers import Details, Usage
from llama_jax.serve.openai.errors import ApiError

if TYPE_CHECKING:
    from llama_jax.serve.stream import Stream

_AHEAD = 256
"""Deltas that wait for a slow client before the streams' readers do."""


@dataclasses.dataclass
class Answering:
    """One request that is being answered."""

    streams: Sequence[Stream]
    n: int
    """Completions of each prompt; stream i has those from i * n on."""
    watch: Watch
    id: str = ""
    created: int = dataclasses.field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.id = self.id or secrets.token_hex(12)

    @property
    def usage(self) -> Usage:
        """So far; right at the end."""
        read = sum(len(stream.prompt) for stream in self.streams)
        cached = sum(stream.cached_tokens for stream in self.streams)
        written = self.watch.new_tokens
        return Usage(read, written, read + written, Details(cached))

    async def deltas(self) -> AsyncIterator[tuple[int, Delta]]:
        """Each delta with the index of its completion, as they come.

        A 500 where a completion's logits were no numbers: what it says means nothing.
        """
        async for index, delta in self._together():
            self.watch.saw(index, delta)
            if delta.finish_reason == "error":
                raise ApiError(
                    500,
                    f"the logits of completion {index} are NaN or infinite: the model's weights "
                    "are damaged, or too large for its number format",
                    code="nan_logits",
                )
            yield index, delta
        self.watch.ended()

    async def _together(self) -> AsyncIterator[tuple[int, Delta]]:
        if len(self.streams) == 1:
            async for delta in self.streams[0]:
                yield delta.row, delta
            return
        queue: asyncio.Queue[tuple[int, Delta] | Exception | None] = asyncio.Queue(_AHEAD)

        async def read(first: int, stream: Stream) -> None:
            try:
                async for delta in stream:
                    await queue.put((first + delta.row, delta))
            except Exception as error:  # raised below, where the answer is made
                await queue.put(error)
            else:
                await queue.put(None)

        reading = enumerate(self.streams)
        readers = [asyncio.create_task(read(i * self.n, stream)) for i, stream in reading]
        try:
            left = len(readers)
            while left:
                match await queue.get():
                    case None:
                        left -= 1
                    case Exception() as error:
                        raise error
                    case one:
                        yield one
        finally:
            for reader in readers:
                reader.cancel()
