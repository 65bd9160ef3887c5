"""An engine of this process, asked as a server is: what HTTP costs is the ratio of the two."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.load.client import Answer, Chunk
from bench.load.mix import Asked

if TYPE_CHECKING:
    import llama_jax


@dataclasses.dataclass(frozen=True)
class Direct:
    """An engine, in the place of a `Server`."""

    engine: llama_jax.Engine
    url: str = "engine"
    model: str | None = None
    body: dict[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def load(cls, checkpoint: Path) -> Direct:
        """The engine of a checkpoint, as `llama-jax serve` makes it, once all is compiled."""
        import llama_jax
        from llama_jax.generation.few_rows import for_few_rows

        engine = llama_jax.Engine(for_few_rows(llama_jax.load(checkpoint)))
        while engine.compiling and engine.failure is None:
            time.sleep(0.1)
        return cls(engine, model=checkpoint.name)

    async def ask(self, asked: Asked) -> Answer:
        """As `Server.ask`."""
        answer = Answer(asked, time.perf_counter())
        wanted: dict[str, Any] = {"max_new_tokens": asked.new, "temperature": 0, "stop_ids": ()}
        try:
            stream = self.engine.submit(asked.prompt, **wanted)
            async for delta in stream:
                new = Chunk(time.perf_counter(), len(delta.tokens), bool(delta.text))
                answer.chunks.append(new)
        except (RuntimeError, ValueError) as error:
            answer.error = f"{type(error).__name__}: {error}"
            return answer
        answer.prompt_tokens, answer.cached_tokens = len(stream.prompt), stream.cached_tokens
        answer.new_tokens = sum(chunk.tokens or 0 for chunk in answer.chunks)
        return answer
