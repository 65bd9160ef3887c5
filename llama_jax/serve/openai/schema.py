"""The server's description in OpenAPI's format, made of the structs that it reads and writes."""

from __future__ import annotations

import functools
from typing import Any

import msgspec

from llama_jax.serve.openai import answers, requests

_TEMPLATE = "#/components/schemas/{name}"
_ROUTES: dict[tuple[str, str], tuple[str, Any, Any]] = {
    ("/v1/completions", "post"): (
        "Continue texts",
        requests.CompletionRequest,
        answers.Completions,
    ),
    ("/v1/chat/completions", "post"): ("Answer a dialog", requests.ChatRequest, answers.Chat),
    ("/v1/models", "get"): ("The model that is served", None, answers.Models),
    ("/v1/models/{model}", "get"): ("A model by its name", None, answers.Model),
    ("/tokenize", "post"): ("Text to ids", requests.TokenizeRequest, answers.Tokenized),
    ("/detokenize", "post"): ("Ids to text", requests.DetokenizeRequest, answers.Detokenized),
    ("/tokenizer_info", "get"): ("What the tokenizer is", None, dict[str, Any]),
    ("/health", "get"): ("Whether the engine lives", None, dict[str, str]),
    ("/ready", "get"): ("Whether requests are taken", None, dict[str, str]),
    ("/metrics", "get"): ("Prometheus's text format", None, None),
}
_STREAMED = {
    "/v1/completions": answers.Completions,
    "/v1/chat/completions": answers.ChatChunk,
}
_ERRORS = {
    "400": "The request is wrong; `param` names the field",
    "401": "The key is missing or wrong",
    "403": "The Host is not this machine's",
    "404": "There is no such model or path",
    "408": "The body came too slowly",
    "413": "The body is too large",
    "415": "The body is not JSON",
    "429": "The queue is full; Retry-After says when to ask again",
    "500": "The model or the server failed",
    "503": "The server starts, ends or has failed",
}


@functools.cache
def openapi() -> dict[str, Any]:
    """The whole description."""
    kinds = [kind for _, *both in _ROUTES.values() for kind in both if kind is not None]
    kinds += [*_STREAMED.values(), answers.Error]
    described, components = msgspec.json.schema_components(kinds, ref_template=_TEMPLATE)
    schemas = list(zip(kinds, described, strict=True))
    paths: dict[str, Any] = {}
    for (path, method), (said, asked, answered) in _ROUTES.items():
        paths.setdefault(path, {})[method] = _operation(path, said, asked, answered, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": "llama_jax", "version": "1"},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _operation(path: str, said: str, asked: Any, answered: Any, schemas: Any) -> dict[str, Any]:
    def of(kind: Any) -> Any:
        return {"schema": next(schema for other, schema in schemas if other == kind)}

    good: dict[str, Any] = {"application/json": of(answered)} if answered else {"text/plain": {}}
    if path in _STREAMED:
        told = [of(kind)["schema"] for kind in (_STREAMED[path], answers.Error)]
        good["text/event-stream"] = {"itemSchema": _event(told)}
    wrong = {"application/json": of(answers.Error)}
    found: dict[str, Any] = {
        "summary": said,
        "responses": {
            "200": {"description": said, "content": good},
            **{code: {"description": why, "content": wrong} for code, why in _ERRORS.items()},
        },
    }
    if asked is not None:
        body = {"application/json": of(asked)}
        found["requestBody"] = {"required": True, "content": body}
    if "{model}" in path:
        schema = {"type": "string"}
        name = {"name": "model", "in": "path", "required": True, "schema": schema}
        found["parameters"] = [name]
    return found


def _event(told: list[Any]) -> dict[str, Any]:
    """The schema of a server-sent event, as OpenAPI 3.2 has it; `told` are those of its JSON."""
    data = {
        "description": "A chunk; an error, which ends the stream; or [DONE], the last",
        "anyOf": [
            {
                "type": "string",
                "contentMediaType": "application/json",
                "contentSchema": {"anyOf": told},
            },
            {"const": "[DONE]"},
        ],
    }
    return {"type": "object", "required": ["data"], "properties": {"data": data}}
