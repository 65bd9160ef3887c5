"""One HTTP request and its answer over ASGI: the body in, JSON or a stream of events out."""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
import time
from collections.abc import AsyncIterator, Coroutine, Iterable, Mapping, MutableMapping
from typing import Any, TypeVar

import msgspec

from llama_jax.serve import limits
from llama_jax.serve.openai.errors import ApiError

T = TypeVar("T")
Headers = Iterable[tuple[str, str]]
_REQUEST_ID = re.compile(r"[\w-]{1,64}", flags=re.ASCII)


class ClientGoneError(Exception):
    """The client has left; nobody reads an answer."""


class Exchange:
    """One request being answered. Host state."""

    def __init__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        self.scope, self._receive, self._send = scope, receive, send
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.headers = {name.decode("latin-1"): value for name, value in scope["headers"]}
        asked = self.header("x-request-id")
        self.id = asked if _REQUEST_ID.fullmatch(asked) else secrets.token_hex(12)
        """The client's, where it is harmless in a log."""
        self.began = time.monotonic()
        self.status: int | None = None
        self.notes: dict[str, object] = {}
        """What the log says of it beside route and status."""
        self._sent_at, self._unread, self._whole = 0.0, self.method == "POST", False
        self._turn = asyncio.Lock()

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self.began

    def header(self, name: str) -> str:
        """A header's value; "" where it is absent."""
        return self.headers.get(name, b"").decode("latin-1")

    async def body(self) -> bytes:
        """The JSON that was sent, counted while it arrives."""
        if self.header("content-type").partition(";")[0].strip().lower() != "application/json":
            raise ApiError(415, "send JSON, with the header Content-Type: application/json")
        found = bytearray()
        try:
            async with asyncio.timeout(limits.BODY_SECONDS):
                async for part in self._parts():
                    found += part
                    if len(found) > limits.MAX_BODY_BYTES:
                        await self._discard()
                        said = f"the body has more than {limits.MAX_BODY_BYTES:,} bytes"
                        raise ApiError(413, said, code="body_too_large")
            return bytes(found)
        except TimeoutError:
            said = f"the body did not arrive within {limits.BODY_SECONDS:g} seconds"
            raise ApiError(408, said, code="body_too_slow") from None

    async def _parts(self) -> AsyncIterator[bytes]:
        while self._unread:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            self._unread = message.get("more_body", False)
            yield message.get("body", b"")

    async def _discard(self) -> None:
        """Reads on for a while: most clients read no answer before they have sent all."""
        size = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limits.DISCARD_SECONDS):
                async for part in self._parts():
                    size += len(part)
                    if size > limits.DISCARD_BYTES:
                        break

    async def unless_gone(self, work: Coroutine[Any, Any, T]) -> T:
        """What `work` returns; where the client leaves before, `work` is cancelled."""
        working = asyncio.ensure_future(work)
        gone = asyncio.ensure_future(self._gone())
        try:
            await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise ClientGoneError
            return working.result()
        finally:
            working.cancel()
            gone.cancel()
            await asyncio.gather(working, gone, return_exceptions=True)

    async def _gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def start(self, status: int, headers: Headers) -> None:
        """The head of the answer."""
        self.status = status
        whole = [*headers, ("x-request-id", self.id)]
        raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in whole]
        await self._send({"type": "http.response.start", "status": status, "headers": raw})

    async def send(
        self, content: bytes, kind: str, status: int = 200, headers: Headers = ()
    ) -> None:
        """A whole answer."""
        fixed = [("content-type", kind), ("content-length", str(len(content)))]
        await self.start(status, [*fixed, *headers])
        await self._end(content)

    async def json(self, value: Any, status: int = 200, headers: Headers = ()) -> None:
        """A whole answer as JSON."""
        await self.send(msgspec.json.encode(value), "application/json", status, headers)

    async def through(self, app: Any, headers: Mapping[str, str]) -> None:
        """The answer of another ASGI application, with these headers too."""

        async def send(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                self.status = message["status"]
                more = [*headers.items(), ("x-request-id", self.id)]
                raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in more]
                message = {**message, "headers": [*message.get("headers", ()), *raw]}
            await self._send(message)

        await app(self.scope, self._receive, send)

    async def error(self, error: ApiError) -> None:
        """An error: as the answer, or as the last event of a stream that has begun.

        What is left of a body that was refused is not read: the connection is closed.
        """
        if self.status is None:
            closing = [("connection", "close")] if self._unread else []
            await self.json(error.body(), error.status, [*error.headers(), *closing])
        elif not self._whole:
            await self._event(msgspec.json.encode(error.body()))
            await self._end()

    async def events(self, values: AsyncIterator[Any]) -> None:
        """A stream of server-sent events, one a value, and `[DONE]` after the last.

        The head is sent at once. Comments keep the connection alive where values are rare.
        """
        fixed = [
            ("content-type", "text/event-stream; charset=utf-8"),
            ("cache-control", "no-cache"),
        ]
        await self.start(200, [*fixed, ("x-accel-buffering", "no")])  # nginx would hold it back
        pinging = asyncio.create_task(self._ping())
        try:
            async with contextlib.aclosing(values) as each:  # type: ignore[type-var]
                async for value in each:
                    await self._event(msgspec.json.encode(value))
        finally:
            pinging.cancel()
            await asyncio.gather(pinging, return_exceptions=True)
        await self._event(b"[DONE]")
        await self._end()

    async def _end(self, content: bytes = b"") -> None:
        self._whole = True
        await self._send({"type": "http.response.body", "body": content})

    async def _event(self, data: bytes) -> None:
        await self._write(b"data: " + data + b"\n\n")

    async def _write(self, data: bytes) -> None:
        async with self._turn:
            await self._send({"type": "http.response.body", "body": data, "more_body": True})
            self._sent_at = time.monotonic()

    async def _ping(self) -> None:
        self._sent_at = time.monotonic()
        while True:
            rest = self._sent_at + limits.PING_SECONDS - time.monotonic()
            if rest > 0:
                await asyncio.sleep(rest)
            else:
                await self._write(b": ping\n\n")
