"""A connection that ends where its client idles, dawdles, sends crumbs or does not read."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from llama_jax.serve import limits

_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: the kernel drops what it has not sent


class _Strict(h11.Connection):
    """h11's, which takes no head of another size or form, and a body in so many pieces at most.

    h11 bounds a head while it waits for its end alone, takes a line feed for a line's end, and
    joins lines to a header's value. A small piece of a body costs as much as a large one.
    """

    _pieces = 0

    def next_event(self) -> Any:
        before = self.trailing_data[0] if self.their_state is h11.IDLE else b""
        event = super().next_event()
        if isinstance(event, h11.Request):
            _check_head(before[: len(before) - len(self.trailing_data[0])])
            self._pieces = 0
        self._pieces += isinstance(event, h11.Data)
        if self._pieces > limits.MAX_PIECES:
            raise h11.RemoteProtocolError("the body comes in too many pieces")
        return event


def _check_head(head: bytes) -> None:
    """RemoteProtocolError where a request's head is too large, or a line feed stands in a line."""
    if len(head) > limits.MAX_HEAD_BYTES:
        raise h11.RemoteProtocolError("the head is too large")
    lines = head.strip(b"\r\n").split(b"\r\n")
    if any(b"\n" in line or line.startswith((b" ", b"\t")) for line in lines):
        raise h11.RemoteProtocolError("a header has more than one line")


class Connection(H11Protocol):
    """uvicorn's, with two more clocks: one for a request's head, one for a client that must read.

    uvicorn's own runs between two requests alone: a connection that never asks would stay. `cut` is
    told why a connection was ended before it had a request or its whole answer.
    """

    def __init__(self, *args: Any, cut: Callable[[str], None], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conn = _Strict(h11.SERVER, limits.MAX_HEAD_BYTES)
        self._cut = cut

    _head: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_watching_head()
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._awaits_head():
            self._watch_head()
        else:
            self._stop_watching_head()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(limits.WRITE_SECONDS, self._abort, "answer_unread")

    def resume_writing(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
        super().resume_writing()

    def _awaits_head(self) -> bool:
        return bool(self.conn.their_state is h11.IDLE)

    def _watch_head(self) -> None:
        if self._head is None:
            self._head = self.loop.call_later(limits.HEAD_SECONDS, self._too_slow)

    def _stop_watching_head(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None

    def _too_slow(self) -> None:
        self._head = None
        if self._awaits_head():
            self._abort("head_too_slow")

    def _abort(self, reason: str) -> None:
        self._cut(reason)
        if made := self.transport.get_extra_info("socket"):
            made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        self._cut("no_http")
        super().send_400_response(msg)
