"""What is wrong with a request, as OpenAI's clients expect to be told."""

from __future__ import annotations

import re
from typing import Any

_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
_SETTINGS = {
    "max_new_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
    "stop_ids": "stop_token_ids",
    "max_seq_len": "the context",
}
_NAMES = re.compile("|".join(rf"\b{name}\b" for name in _SETTINGS))


class ApiError(Exception):
    """An answer that is an error. A client asks again only where that may help."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.retry_after = retry_after

    def body(self) -> dict[str, Any]:
        """The error as JSON."""
        usual = "invalid_request_error" if self.status < 500 else "server_error"
        kind = _KINDS.get(self.status, usual)
        said = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": said}

    def headers(self) -> list[tuple[str, str]]:
        """Whether and when to ask again.

        OpenAI's client asks again after a 408, a 409, a 429 and any 5xx unless it is told not to:
        a request that fails by its own fault would fail three times.
        """
        found = [("x-should-retry", "true" if self.status in (429, 503) else "false")]
        if self.retry_after is not None:
            found.append(("retry-after", str(max(1, round(self.retry_after)))))
        if self.status == 401:
            found.append(("www-authenticate", "Bearer"))
        return found


def bad(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """A 400: the request is wrong, and would be wrong again."""
    return ApiError(400, message, param=param, code=code)


def refused(error: ValueError, param: str) -> ApiError:
    """What the engine or the tokenizer refuses, in the words of the protocol."""
    said = str(error).split(", or pass truncate=True")[0]
    said = _NAMES.sub(lambda found: _SETTINGS[found[0]], said)
    said = said.replace("the context=", "").replace("prompt 0 ", "the prompt ")
    long = "context ends at" in said
    named = re.match(r"(\w+)=", said)
    return bad(said, named[1] if named else param, "context_length_exceeded" if long else None)
