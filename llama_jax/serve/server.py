"""A socket for the application: uvicorn, its clocks, and an end that answers what was accepted."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import resource
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn

from llama_jax.serve import limits
from llama_jax.serve.connection import Connection
from llama_jax.serve.http import App

_LOOK_SECONDS = 0.05


class Server(uvicorn.Server):
    """uvicorn's, which says when the engine is ready, and tells the application when it ends."""

    def __init__(self, app: App, outer: Any, ready: Callable[[], None] = lambda: None) -> None:
        super().__init__(
            uvicorn.Config(
                outer,
                http=functools.partial(Connection, cut=app.cut),  # type: ignore[arg-type]
                ws="none",
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                backlog=2048,
                limit_concurrency=limits.MAX_CONNECTIONS,
                timeout_keep_alive=int(limits.KEEP_ALIVE_SECONDS),
                timeout_graceful_shutdown=int(limits.DRAIN_SECONDS),
            )
        )
        self._app, self._ready = app, ready

    def handle_exit(self, sig: int, frame: Any) -> None:
        """From the signal on, `/ready` refuses, and what was accepted is answered."""
        self._app.draining = True
        super().handle_exit(sig, frame)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._looking = asyncio.create_task(self._say_ready())

    async def _say_ready(self) -> None:
        engine = self._app.served.engine
        while not engine.ready and engine.failure is None:
            await asyncio.sleep(_LOOK_SECONDS)
        if engine.failure is None:
            self._ready()
        else:
            self.should_exit = True  # it never answered anything


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens at an address; port 0 is a free one. ValueError where it is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host.strip("[]"), port))
    except OSError as error:
        listening.close()
        raise ValueError(
            f"nothing can listen at {host}, port {port}: {error.strerror or error}; "
            "pass another port= or host="
        ) from None
    return listening


def url_of(listening: socket.socket) -> str:
    """Where a browser on this machine finds it."""
    host, port, *_ = listening.getsockname()
    name = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{name}:{port}"


def serve(server: Server, listening: socket.socket) -> None:
    """Serves until SIGTERM or SIGINT; then answers what it accepted, and returns."""
    _allow_files()
    with _ended_by_sigterm():
        server.run(sockets=[listening])


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """uvicorn raises the signal again once it has ended, which would end the process too."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _allow_files() -> None:
    """A connection is a file, of which a process has often 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = 2 * limits.MAX_CONNECTIONS
    wanted = most if hard == resource.RLIM_INFINITY else min(hard, most)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
