"""One request to a server that speaks OpenAI's protocol, and when each of its tokens came.

HTTP/1.1 over the standard library, a connection a request: a client that shares the machine with
the server that it measures should cost little.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import ssl
import time
from collections.abc import AsyncIterator
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from bench.load.mix import Asked


class Chunk(NamedTuple):
    """One event about a choice."""

    time: float
    tokens: int | None
    """How many it brought, None where the server does not say."""
    has_text: bool


@dataclasses.dataclass
class Answer:
    """What came of a request. Times are of `time.perf_counter`."""

    asked: Asked
    sent: float
    chunks: list[Chunk] = dataclasses.field(default_factory=list)
    prompt_tokens: int | None = None
    new_tokens: int | None = None
    cached_tokens: int | None = None
    error: str | None = None

    @property
    def counted(self) -> bool:
        """Whether the server said of every text how many tokens it is."""
        return all(chunk.tokens is not None for chunk in self.chunks if chunk.has_text)


@dataclasses.dataclass(frozen=True)
class Server:
    """Where requests go, and what each of them says beside its prompt."""

    url: str
    model: str | None = None
    body: dict[str, Any] = dataclasses.field(default_factory=dict)
    timeout: float = 600.0

    def path(self, name: str) -> str:
        """The path of `/v1/name`; the URL may or may not end with `/v1`."""
        base = urlsplit(self.url).path.rstrip("/").removesuffix("/v1")
        return f"{base}/v1/{name}"

    async def first_model(self) -> str:
        """The first that the server lists."""
        async with asyncio.timeout(self.timeout):
            pieces = [piece async for piece in self._answered("GET", "models", b"")]
        return str(json.loads(b"".join(pieces))["data"][0]["id"])

    async def ask(self, asked: Asked) -> Answer:
        """Sends a request and follows its answer; what goes wrong is the answer's `error`."""
        body = {
            "model": self.model,
            "prompt": asked.prompt,
            "max_tokens": asked.new,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
            **self.body,
        }
        content = json.dumps(body).encode()
        answer = Answer(asked, time.perf_counter())
        try:
            async with asyncio.timeout(self.timeout):
                await self._follow(answer, content)
        except TimeoutError:
            answer.error = f"no whole answer within {self.timeout:g} s"
        except (OSError, ValueError, LookupError, asyncio.IncompleteReadError) as error:
            answer.error = f"{type(error).__name__}: {error}"
        return answer

    async def _follow(self, answer: Answer, content: bytes) -> None:
        counted, done, rest = 0, False, b""
        async for piece in self._answered("POST", "completions", content):
            now = time.perf_counter()
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                if not line.startswith(b"data:"):
                    continue
                if (data := line[5:].strip()) == b"[DONE]":
                    done = True
                else:
                    counted = _take(answer, json.loads(data), now, counted)
        if not done:
            raise ValueError("the stream ended without [DONE]")
        if answer.new_tokens is None:
            raise ValueError("the server said no usage, so its tokens cannot be counted")
        if not any(chunk.has_text or chunk.tokens for chunk in answer.chunks):
            raise ValueError(f"{answer.new_tokens} tokens were counted, and no chunk had one")

    async def _answered(self, method: str, name: str, content: bytes) -> AsyncIterator[bytes]:
        """The parts of a body as they come; ValueError with its beginning if its status is bad."""
        at = urlsplit(self.url)
        secure = at.scheme == "https"
        port = at.port or (443 if secure else 80)
        context = ssl.create_default_context() if secure else None
        reader, writer = await asyncio.open_connection(at.hostname, port, ssl=context)
        try:
            head = [f"{method} {self.path(name)} HTTP/1.1", f"Host: {at.netloc}"]
            head += ["Connection: close", "Content-Type: application/json"]
            head += [f"Content-Length: {len(content)}"]
            if key := os.environ.get("OPENAI_API_KEY"):
                head.append(f"Authorization: Bearer {key}")
            writer.write("\r\n".join([*head, "", ""]).encode() + content)
            await writer.drain()
            status, headers = await read_head(reader)
            pieces = read_body(reader, headers)
            if status != 200:
                said = b"".join([piece async for piece in pieces])
                raise ValueError(f"status {status}: {said[:200].decode(errors='replace')}")
            async for piece in pieces:
                yield piece
        finally:
            writer.close()


def _take(answer: Answer, event: dict[str, Any], now: float, counted: int) -> int:
    """Notes one event; returns how many tokens the server has counted so far, if it does."""
    if "error" in event:
        raise ValueError(f"error in the stream: {json.dumps(event['error'])[:200]}")
    usage = event.get("usage") or {}
    if (total := usage.get("completion_tokens")) is not None:
        answer.prompt_tokens, answer.new_tokens = usage.get("prompt_tokens"), total
        answer.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
    if not event.get("choices"):
        return counted
    choice = event["choices"][0]
    if total is None:
        total = (event.get("timings") or {}).get("predicted_n")
    some = _listed(choice) if total is None else total - counted
    answer.chunks.append(Chunk(now, some, bool(choice.get("text"))))
    return counted if total is None else total


def _listed(choice: dict[str, Any]) -> int | None:
    """The tokens that a chunk names, as ids or with log-probabilities."""
    if choice.get("token_ids") is not None:
        return len(choice["token_ids"])
    tokens = (choice.get("logprobs") or {}).get("tokens")
    return None if tokens is None else len(tokens)


async def read_head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    """The status and the headers, whose names are lower case."""
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in lines[1:] if line)
    return int(lines[0].split()[1]), {name.lower(): value.strip() for name, _, value in pairs}


async def read_body(reader: asyncio.StreamReader, headers: dict[str, str]) -> AsyncIterator[bytes]:
    if "chunked" in headers.get("transfer-encoding", "").lower():
        while size := int((await reader.readline()).split(b";")[0], 16):
            yield await reader.readexactly(size)
            await reader.readexactly(2)
    elif "content-length" in headers:
        yield await reader.readexactly(int(headers["content-length"]))
    else:
        while piece := await reader.read(1 << 16):
            yield piece
