"""The application at work: uvicorn, its clocks, and an end that answers what was accepted."""

from __future__ import annotations

import asyncio
import functools
import logging
import resource
import signal
import socket
from collections.abc import Callable
from typing import Any

import uvicorn

from llama_jax.serve import limits
from llama_jax.serve.connection import Connection
from llama_jax.serve.http import App

logger = logging.getLogger("llama_jax.serve")
_LOOK_SECONDS = 0.05
_FAREWELL_SECONDS = 1.0
"""How long those whose answer is cut may take to read so."""


class Server(uvicorn.Server):
    """uvicorn's, which says when the engine is ready, and ends without losing an answer.

    SIGTERM and SIGINT close the door, and what was accepted is answered. After `DRAIN_SECONDS`, or
    at a second SIGINT, what is left is told so. No signal is raised again, as uvicorn would.
    """

    def __init__(self, app: App, outer: Any, ready: Callable[[], None] = lambda: None) -> None:
        super().__init__(
            uvicorn.Config(
                outer,
                http=functools.partial(Connection, cut=app.cut),  # type: ignore[arg-type]
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                backlog=2048,
                limit_concurrency=limits.MAX_CONNECTIONS,
                timeout_keep_alive=int(limits.KEEP_ALIVE_SECONDS),
            )
        )
        self._app, self._ready = app, ready
        self.interrupted = False
        """Whether Ctrl-C ended it."""
        self._hurried = False

    def handle_exit(self, sig: int, frame: Any) -> None:
        """From the signal on, `/ready` refuses, and what was accepted is answered."""
        self._hurried |= self.should_exit and sig == signal.SIGINT
        self.interrupted |= sig == signal.SIGINT
        self._app.draining = self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Takes no more connections, and waits for the answers that are on the way."""
        said = "the server ends"
        if on_the_way := len(self.server_state.tasks):
            said += f" once it has answered {_requests(on_the_way)}, within "
            said += f"{limits.DRAIN_SECONDS:g} seconds; Ctrl-C once more ends it now"
        logger.info(said)
        cutting = asyncio.create_task(self._cut_in_time())
        await super().shutdown(sockets)
        cutting.cancel()

    async def _cut_in_time(self) -> None:
        """Ends what is left when the time is over, or who waits for it will not wait longer."""
        loop = asyncio.get_running_loop()
        until = loop.time() + limits.DRAIN_SECONDS
        while not self._hurried and loop.time() < until:
            await asyncio.sleep(_LOOK_SECONDS)
        if left := set(self.server_state.tasks):
            logger.warning("%s not answered", _requests(len(left)))
            for task in left:
                task.cancel()
            await asyncio.wait(left, timeout=_FAREWELL_SECONDS)
        for connection in list(self.server_state.connections):
            connection.transport.abort()

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


def serve(server: Server, listening: socket.socket) -> None:
    """Serves until SIGTERM or SIGINT; then answers what it accepted, and returns."""
    _allow_files()
    server.run(sockets=[listening])


def _requests(count: int) -> str:
    return "1 request" if count == 1 else f"{count} requests"


def _allow_files() -> None:
    """A connection is a file, of which a process has often 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = 2 * limits.MAX_CONNECTIONS
    wanted = most if hard == resource.RLIM_INFINITY else min(hard, most)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
