"""A connection between two processes of a job, which carries JSON objects."""

from __future__ import annotations

import collections
import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

LOST_AFTER = 30
"""Seconds after which a machine that no longer answers counts as gone."""
MAX_HELLO, MAX_MESSAGE = 1 << 10, 1 << 30
"""Bytes of one object: from whoever connects, and from a process of the job."""
MAX_SAID = 300
"""Characters of what another process says, where it is printed."""


class Line:
    """One end of a connection: an object a line, either way. Host state."""

    def __init__(self, connection: socket.socket, limit: int = MAX_MESSAGE) -> None:
        self.connection, self.limit = connection, limit
        self.open = True
        self._unread = bytearray()
        self._arrived: collections.deque[dict[str, Any]] = collections.deque()
        self._sending = threading.Lock()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (("IDLE", 10), ("INTVL", 5), ("CNT", (LOST_AFTER - 10) // 5)):
            if option := getattr(socket, f"TCP_KEEP{name}", None):  # not every system has them
                connection.setsockopt(socket.IPPROTO_TCP, option, value)

    def fileno(self) -> int:
        """What a selector waits for."""
        return self.connection.fileno()

    def send(self, **message: Any) -> None:
        """Sends an object; an end that is gone is noticed where it is read from."""
        with self._sending, contextlib.suppress(OSError):
            self.connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> None:
        """Waits until something comes.

        `open` is false once the other end is gone, or sends what no process of ours does.
        """
        try:
            data = self.connection.recv(1 << 16)
        except (TimeoutError, BlockingIOError):
            return
        except OSError:
            data = b""
        self.open = bool(data)
        self._unread += data
        try:
            if b"\n" in data:
                *whole, rest = bytes(self._unread).split(b"\n")
                self._unread = bytearray(rest)
                self._arrived.extend(map(_object, whole))
            if len(self._unread) > self.limit:
                raise ValueError("more than one object takes")
        except (ValueError, RecursionError):
            self.open = False

    def take(self) -> Iterator[dict[str, Any]]:
        """The objects that have come, each once."""
        while self._arrived:
            yield self._arrived.popleft()

    def close(self) -> None:
        """Ends the connection, which the other end notices."""
        self.open = False
        self.connection.close()


def _object(line: bytes) -> dict[str, Any]:
    found = json.loads(line)
    if not isinstance(found, dict):
        raise ValueError("not an object")
    return found


def words(said: object) -> str:
    """What another process says, as one line that can be printed: cut, control marks escaped."""
    escaped = "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(said)[: MAX_SAID + 1])
    return escaped if len(escaped) <= MAX_SAID else f"{escaped[:MAX_SAID]}..."
