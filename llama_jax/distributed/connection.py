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


class Line:
    """One end of a connection: an object a line, either way. Host state."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.open = True
        self._unread = b""
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
        """Waits until something comes; once the other end is gone `open` is false.

        ValueError, or RecursionError, for what no process of ours sends.
        """
        try:
            data = self.connection.recv(1 << 16)
        except TimeoutError:
            return
        except OSError:
            data = b""
        self.open = bool(data)
        *whole, self._unread = (self._unread + data).split(b"\n")
        for one in map(json.loads, whole):
            if not isinstance(one, dict):
                raise ValueError("not an object")
            self._arrived.append(one)

    def take(self) -> Iterator[dict[str, Any]]:
        """The objects that have come, each once."""
        while self._arrived:
            yield self._arrived.popleft()

    def close(self) -> None:
        """Ends the connection, which the other end notices."""
        self.open = False
        self.connection.close()
