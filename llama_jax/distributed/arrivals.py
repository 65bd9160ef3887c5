"""Whoever connects to the coordinator's port, ours and strangers, all heard at once."""

from __future__ import annotations

import contextlib
import secrets
import selectors
import socket
import time
from collections.abc import Generator, Iterator
from typing import Any

from llama_jax.distributed.connection import MAX_HELLO, Line

MAX_SILENT = 256
"""How many may be connected that have said nothing yet. The oldest makes room for the next."""
PATIENCE = 10.0
"""Seconds in which whoever connects must say who it is."""
BACKLOG = 4096
"""How many may wait to be heard while this process is not running."""

Called = tuple[Line, str, dict[str, Any]]
"""A line, the word that was sent on it, and what came back first."""


@contextlib.contextmanager
def listener(port: int) -> Iterator[socket.socket]:
    """A socket that all interfaces reach; ValueError where the port is another's."""
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        opened = socket.create_server(
            ("", port), family=family, backlog=BACKLOG, dualstack_ipv6=both
        )
    except OSError as error:
        raise ValueError(
            f"port {port} of this machine, the coordinator's, cannot be had: {error}; name another"
        ) from error
    with opened:
        yield opened


def hellos(heard: socket.socket, until: float) -> Generator[Called, None, None]:
    """Each that calls, as soon as it has said something; it ends at a time of `time.monotonic`.

    Who says nothing costs no time of the others', and is let go when it ends.
    """
    heard.setblocking(False)
    silent: dict[Line, tuple[str, float]] = {}  # in the order in which they came
    with selectors.DefaultSelector() as selector:
        selector.register(heard, selectors.EVENT_READ)
        try:
            while (now := time.monotonic()) < until:
                while silent and (len(silent) > MAX_SILENT or next(iter(silent.values()))[1] < now):
                    _let_go(selector, silent, next(iter(silent)))
                for key, _ in selector.select(min(until - now, 0.5)):
                    line = key.fileobj
                    if not isinstance(line, Line):
                        _accept(heard, selector, silent)
                        continue
                    if line not in silent:  # let go a moment ago
                        continue
                    line.receive()
                    if message := next(line.take(), None):
                        selector.unregister(line)
                        yield line, silent.pop(line)[0], message
                    elif not line.open:
                        _let_go(selector, silent, line)
        finally:
            for line in silent:
                line.close()


def _accept(
    heard: socket.socket, selector: selectors.BaseSelector, silent: dict[Line, tuple[str, float]]
) -> None:
    """One that connects is sent a word, by which its answer is known to be no older."""
    with contextlib.suppress(OSError):  # it has gone already, or there are no descriptors left
        line = Line(heard.accept()[0], MAX_HELLO)
        line.connection.setblocking(False)
        word = secrets.token_hex(16)
        line.send(word=word)
        silent[line] = word, time.monotonic() + PATIENCE
        selector.register(line, selectors.EVENT_READ)


def _let_go(
    selector: selectors.BaseSelector, silent: dict[Line, tuple[str, float]], line: Line
) -> None:
    selector.unregister(line)
    del silent[line]
    line.close()
