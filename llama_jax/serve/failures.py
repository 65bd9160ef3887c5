"""Errors as the protocol tells them, and whether the engine lives."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from llama_jax.serve import limits
from llama_jax.serve.openai.errors import ApiError, bad
from llama_jax.serve.stream import (
    EngineClosedError,
    QueueFullError,
    RequestFailedError,
    UnfollowableError,
)

if TYPE_CHECKING:
    from llama_jax.serve.engine import Engine


def known(error: BaseException) -> ApiError:
    """The protocol's error for whatever was raised."""
    match error:
        case ApiError():
            return error
        case QueueFullError():
            said = "the queue is full: too many requests wait; ask again later"
            return ApiError(429, said, code="queue_full", retry_after=error.retry_after)
        case EngineClosedError():
            said = "the server takes no more requests: it ends, or its engine has failed"
            return ApiError(503, said, code="engine_closed")
        case asyncio.CancelledError():  # the server waits no longer, as `Server.shutdown` has it
            said = "the server ended before this was answered; ask again"
            return ApiError(503, said, code="draining")
        case UnfollowableError():
            return bad(f"the answer cannot go on: {error}", code="unfollowable")
        case RequestFailedError():
            return ApiError(500, "the engine failed at this request", code="request_failed")
    return ApiError(500, "the server failed at this request; its log says why", code="internal")


def check_alive(engine: Engine) -> None:
    """A 503 where the engine has failed, or does not go round."""
    if engine.failure is not None:
        raise ApiError(503, "the engine has failed; the server's log says why", code="failed")
    if engine.ready and engine.heartbeat > limits.HEARTBEAT_SECONDS:
        said = f"the engine has not gone round for {engine.heartbeat:.0f} seconds"
        raise ApiError(503, said, code="stalled")
