"""The server's routes: an ASGI application over one engine."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.staticfiles import StaticFiles

from llama_jax.serve.exchange import ClientGoneError, Exchange
from llama_jax.serve.failures import check_alive, known
from llama_jax.serve.keys import check_host, check_key
from llama_jax.serve.metrics import Metrics, Watch
from llama_jax.serve.openai import chat, completions, tokens
from llama_jax.serve.openai.errors import ApiError
from llama_jax.serve.openai.flow import Answering
from llama_jax.serve.openai.reading import read_request
from llama_jax.serve.openai.requests import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
)
from llama_jax.serve.openai.schema import openapi
from llama_jax.serve.openai.served import Served
from llama_jax.serve.stream import Stream

logger = logging.getLogger("llama_jax.serve")
PAGE = Path(__file__).with_name("page")
PAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}
OPEN = {"/health", "/ready"}
"""Routes that need no key, as the page does not."""
Handler = Callable[[Exchange], Awaitable[None]]


class App:
    """The ASGI application. Host state: what it counts, and whether it still takes requests."""

    def __init__(self, served: Served, *, keys: Sequence[bytes] = (), local: bool = True) -> None:
        self.served, self.metrics, self.draining = served, Metrics(), False
        self._keys, self._local = tuple(keys), local
        self._page = StaticFiles(directory=PAGE, html=True) if PAGE.is_dir() else None
        self.routes: dict[str, tuple[str, Handler]] = {
            "/v1/completions": ("POST", self._completions),
            "/v1/chat/completions": ("POST", self._chat),
            "/v1/models": ("GET", self._models),
            "/v1/embeddings": ("POST", self._embeddings),
            "/tokenize": ("POST", self._tokenize),
            "/detokenize": ("POST", self._detokenize),
            "/tokenizer_info": ("GET", self._tokenizer_info),
            "/health": ("GET", self._health),
            "/ready": ("GET", self._ready),
            "/metrics": ("GET", self._metrics),
            "/openapi.json": ("GET", self._openapi),
        }

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
        elif scope["type"] == "http":
            await self._answer(Exchange(scope, receive, send))

    def cut(self, reason: str) -> None:
        """A connection was ended that had no request, or that did not read its answer."""
        self.metrics.cut.add(reason)
        logger.info("connection cut: %s", reason)

    async def _answer(self, exchange: Exchange) -> None:
        """Answers one request, whatever happens; an error becomes one of the protocol's."""
        route, handler = self._route(exchange)
        try:
            if self._local:
                check_host(exchange.header("host"))
            if route not in OPEN and route != "page":
                check_key(self._keys, exchange.header("authorization"))
            await handler(exchange)
        except ClientGoneError:
            self.metrics.gone.add(route)
            exchange.notes["gone"] = True
        except (Exception, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError) and not self.draining:
                raise  # whoever serves this application has its reasons
            told = known(error)
            if told.status == 500:
                logger.error("request %s failed", exchange.id, exc_info=error)
            if told.status != 503 or route not in OPEN:  # a probe that asks is answered
                self.metrics.refused.add(told.code or str(told.status))
            await exchange.error(told)
        finally:
            self._log(route, exchange)

    def _route(self, exchange: Exchange) -> tuple[str, Handler]:
        path, method = exchange.path, exchange.method
        if path in self.routes:
            allowed, handler = self.routes[path]
            right = method == allowed or (method == "HEAD" and allowed == "GET")
            return path, handler if right else _refuse_method(allowed)
        if path.startswith("/v1/models/") and method in ("GET", "HEAD"):
            return "/v1/models", self._model
        if self._page is not None and method in ("GET", "HEAD"):
            return "page", self._file
        return "other", _refuse_path

    def _log(self, route: str, exchange: Exchange) -> None:
        self.metrics.answers.add(route, str(exchange.status or 499))
        notes = " ".join(f"{name}={value}" for name, value in exchange.notes.items())
        fixed = exchange.method[:8], route, exchange.status or 499, exchange.seconds, exchange.id
        logger.info("%s %s %s %.3fs id=%s %s", *fixed, notes)

    async def _completions(self, exchange: Exchange) -> None:
        request = read_request(CompletionRequest, await exchange.body())
        await self._generate(exchange, completions, request)

    async def _chat(self, exchange: Exchange) -> None:
        request = read_request(ChatRequest, await exchange.body())
        await self._generate(exchange, chat, request)

    async def _generate(self, exchange: Exchange, kind: Any, request: Any) -> None:
        """`kind` is the module of the protocol's part."""
        watch = Watch(self.metrics)

        async def work() -> None:
            streams = await self._submitted(kind, request)
            try:
                answering = Answering(streams, request.n, watch)
                exchange.notes["prompt"] = sum(len(stream.prompt) for stream in streams)
                if request.stream:
                    await exchange.events(kind.chunks(self.served, request, answering))
                else:
                    await exchange.json(await kind.whole(self.served, request, answering))
            finally:
                for stream in streams:
                    stream.cancel()
                exchange.notes["new"] = watch.new_tokens

        await exchange.unless_gone(work())

    async def _submitted(self, kind: Any, request: Any) -> list[Stream]:
        """The request's streams, made in a thread: templates, grammars and long texts take time.

        Where the client leaves in between, the thread's streams are cancelled once there are any.
        """

        def submit() -> list[Stream]:
            return self.served.submit(*kind.asked_for(self.served, request))

        making = asyncio.get_running_loop().run_in_executor(None, submit)
        try:
            return await asyncio.shield(making)
        except asyncio.CancelledError:
            making.add_done_callback(_cancel_made)
            raise

    async def _models(self, exchange: Exchange) -> None:
        await exchange.json(tokens.models(self.served))

    async def _model(self, exchange: Exchange) -> None:
        name = exchange.path.removeprefix("/v1/models/")
        await exchange.json(tokens.model(self.served, name))

    async def _embeddings(self, exchange: Exchange) -> None:
        raise tokens.no_embeddings()

    async def _tokenize(self, exchange: Exchange) -> None:
        request = read_request(TokenizeRequest, await exchange.body())
        await exchange.json(await asyncio.to_thread(tokens.tokenize, self.served, request))

    async def _detokenize(self, exchange: Exchange) -> None:
        request = read_request(DetokenizeRequest, await exchange.body())
        await exchange.json(await asyncio.to_thread(tokens.detokenize, self.served, request))

    async def _tokenizer_info(self, exchange: Exchange) -> None:
        await exchange.json(tokens.tokenizer_info(self.served))

    async def _health(self, exchange: Exchange) -> None:
        check_alive(self.served.engine)
        await exchange.json({"status": "ok"})

    async def _ready(self, exchange: Exchange) -> None:
        check_alive(self.served.engine)
        if not self.served.engine.ready:
            raise ApiError(503, "the first programs are being compiled", code="starting")
        if self.draining:
            raise ApiError(503, "the server ends, and takes no more requests", code="draining")
        await exchange.json({"status": "ready"})

    async def _metrics(self, exchange: Exchange) -> None:
        text = self.metrics.text(self.served.engine)
        await exchange.send(text.encode(), "text/plain; version=0.0.4; charset=utf-8")

    async def _openapi(self, exchange: Exchange) -> None:
        await exchange.json(openapi())

    async def _file(self, exchange: Exchange) -> None:
        try:
            await exchange.through(self._page, PAGE_HEADERS)
        except HTTPException:
            await _refuse_path(exchange)


def application(
    served: Served, *, keys: Sequence[bytes] = (), local: bool = True, origins: Sequence[str] = ()
) -> tuple[App, Any]:
    """The application, and what a server is to run: it, behind CORS where origins are allowed."""
    app = App(served, keys=keys, local=local)
    if not origins:
        return app, app
    return app, CORSMiddleware(
        app,
        allow_origins=list(origins),
        allow_methods=["GET", "POST"],
        allow_headers=["*"],
        expose_headers=["x-request-id", "retry-after"],
    )


def _cancel_made(making: asyncio.Future[list[Stream]]) -> None:
    if not making.cancelled() and making.exception() is None:
        for stream in making.result():
            stream.cancel()


def _refuse_method(allowed: str) -> Handler:
    async def refuse(exchange: Exchange) -> None:
        said = f"this path takes {allowed}, not {exchange.method!r:.20}"
        raise ApiError(405, said, code="method_not_allowed")

    return refuse


async def _refuse_path(exchange: Exchange) -> None:
    raise ApiError(404, "there is nothing at this path", code="not_found")


async def _lifespan(receive: Any, send: Any) -> None:
    for step in ("startup", "shutdown"):
        await receive()
        await send({"type": f"lifespan.{step}.complete"})
