"""What an answer is to look like, in OpenAI's and in vLLM's words, to a constraint."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llama_jax.generation.constraint import Constraint, constraint_for
from llama_jax.serve.openai.errors import bad
from llama_jax.serve.openai.requests import Request, ResponseFormat, StructuredOutputs
from llama_jax.tokenizer import Tokenizer


def constraint_of(
    request: Request,
    tokenizer: Tokenizer,
    vocab_size: int,
    schema: Mapping[str, Any] | None,
    *,
    stop_ids: Sequence[int] | None,
    after: Sequence[int] | None,
) -> Constraint | None:
    """The constraint that a request states, or None. `schema` is that of tools' calls."""
    asked = list(_asked(request))
    if schema is not None:
        asked.append(("tool_choice", {"json_schema": dict(schema)}))
    if not asked:
        return None
    if len(asked) > 1:
        (first, _), (second, _), *_ = asked
        raise bad(f"{first} and {second} both say what the answer is; keep one", second)
    ((param, wanted),) = asked
    try:
        return constraint_for(tokenizer, vocab_size, stop_ids=stop_ids, after=after, **wanted)
    except ValueError as error:
        raise bad(f"{param} is refused: {error}", param, "invalid_value") from None
    except ImportError:
        said = f"{param} needs the package llguidance, which this server lacks: install "
        raise bad(said + "'llama_jax[grammar]' there", param, "not_installed") from None


def _asked(request: Request) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each field that says something, with what `constraint_for` is given for it."""
    if request.response_format is not None:
        yield from _response_format(request.response_format)
    if request.structured_outputs is not None:
        yield from _structured(request.structured_outputs)
    if request.guided_json is not None:
        yield "guided_json", {"json_schema": _schema("guided_json", request.guided_json)}
    if request.guided_regex is not None:
        yield "guided_regex", {"regex": request.guided_regex}
    if request.guided_choice is not None:
        yield "guided_choice", {"regex": _one_of(request.guided_choice)}
    if request.guided_grammar is not None:
        yield "guided_grammar", {"grammar": request.guided_grammar}


def _response_format(format: ResponseFormat) -> Iterator[tuple[str, dict[str, Any]]]:
    match format.type:
        case "text":
            return
        case "json_object":
            wanted: dict[str, Any] = {"json_object": True}
            if format.schema is not None:
                wanted = {"json_schema": format.schema}
        case "json_schema":
            if format.json_schema is None:
                raise bad("response_format has no json_schema", "response_format.json_schema")
            wanted = {"json_schema": format.json_schema.schema}
        case kind:
            if (text := getattr(format, kind)) is None:
                raise bad(f"response_format has no {kind}", f"response_format.{kind}")
            wanted = {kind: text}
    yield "response_format", wanted


def _structured(asked: StructuredOutputs) -> Iterator[tuple[str, dict[str, Any]]]:
    name = "structured_outputs"
    if asked.json is not None:
        yield name, {"json_schema": _schema(name, asked.json)}
    if asked.json_object:
        yield name, {"json_object": True}
    if asked.regex is not None:
        yield name, {"regex": asked.regex}
    if asked.choice is not None:
        yield name, {"regex": _one_of(asked.choice)}
    if asked.grammar is not None:
        yield name, {"grammar": asked.grammar}


def _schema(param: str, given: dict[str, Any] | str) -> Any:
    if not isinstance(given, str):
        return given
    try:
        return json.loads(given)
    except (ValueError, RecursionError) as error:
        raise bad(f"{param} is no JSON: {error}", param, "invalid_value") from None


def _one_of(choices: list[str]) -> str:
    """A regular expression for one of several texts."""
    return "|".join(f"({re.escape(choice)})" for choice in choices)
