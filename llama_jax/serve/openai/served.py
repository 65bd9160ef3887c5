"""The one model that is served, and what a request asks of it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llama_jax.generation.settings import ON_DEVICE, SamplingSettings
from llama_jax.serve import limits
from llama_jax.serve.openai.constraints import constraint_of
from llama_jax.serve.openai.errors import ApiError, bad, refused
from llama_jax.serve.openai.requests import CompletionRequest, Request

if TYPE_CHECKING:
    from llama_jax.generation.constraint import Constraint
    from llama_jax.generation.prompts import Prompt
    from llama_jax.serve.engine import Engine
    from llama_jax.serve.stream import Stream
    from llama_jax.tokenizer import Tokenizer

_WORD = re.compile(r"-?\d{1,10}")


@dataclasses.dataclass(frozen=True)
class Served:
    """A model under the name that requests call it by."""

    engine: Engine
    name: str
    created: int
    """When it was loaded, in seconds since 1970."""
    chats: bool = True
    """Whether it was made to talk with; another continues texts."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's; a server has one."""
        if self.engine.tokenizer is None:
            raise ValueError("the model has no tokenizer, and a server answers in text")
        return self.engine.tokenizer

    @property
    def context(self) -> int:
        """Tokens of a prompt and its answer together."""
        return self.engine.config.max_seq_len

    def check_name(self, name: str | None) -> None:
        """A 404 where a request names another model."""
        if name is not None and name != self.name:
            said = f"the model {name!r:.80} does not exist here; this server has {self.name!r}"
            raise ApiError(404, said, param="model", code="model_not_found")

    def check_chats(self) -> None:
        """A 400 where the model continues texts alone: what it said to a message means nothing."""
        if not self.chats:
            raise bad(
                f"{self.name} is no chat model: it has no format for dialogs. Send a text for it "
                "to continue, as prompt, to /v1/completions; or serve a chat model",
                "messages",
                "no_chat_model",
            )

    def submit(self, prompts: Sequence[Prompt], asked: Asked) -> list[Stream]:
        """One stream a prompt; where the queue takes some of them only, none."""
        streams: list[Stream] = []
        try:
            for prompt in prompts:
                one = self.engine.submit(
                    prompt,
                    asked.settings,
                    n=asked.n,
                    cache_salt=asked.salt,
                    constraint=asked.constraint,
                )
                streams.append(one)
        except BaseException as error:
            for stream in streams:
                stream.cancel()
            if isinstance(error, ValueError):
                raise refused(error, asked.param) from None
            raise
        return streams

    def check_length(self, characters: int, param: str) -> None:
        """A 400 where a text is too long to be worth encoding."""
        if characters > self.context * limits.CHARACTERS_A_TOKEN:
            raise bad(
                f"{param} has {characters:,} characters, and the context ends at "
                f"{self.context:,} tokens; shorten it",
                param,
                "context_length_exceeded",
            )

    def encode(self, text: str, param: str, *, bos: bool = True) -> list[int]:
        """The ids of a text that may fit into the context."""
        self.check_length(len(text), param)
        try:
            return self.tokenizer.encode(text, bos=bos, eos=False)
        except ValueError as error:
            raise refused(error, param) from None

    def check_ids(self, ids: Sequence[int], param: str) -> list[int]:
        """Ids that the model has and the context holds; a 400 otherwise."""
        size = self.engine.config.vocab_size
        if not ids:
            raise bad(f"{param} has no tokens; send at least one", param, "invalid_value")
        if min(ids) < 0 or max(ids) >= size:
            wrong = next(id for id in ids if not 0 <= id < size)
            raise bad(
                f"{param} has token {wrong}, and the model knows 0 to {size - 1}",
                param,
                "invalid_value",
            )
        if len(ids) > self.context:
            raise bad(
                f"{param} has {len(ids):,} tokens, and the context ends at {self.context:,}; "
                "shorten it",
                param,
                "context_length_exceeded",
            )
        return list(ids)


@dataclasses.dataclass(frozen=True)
class Asked:
    """What an engine is given beside a prompt."""

    settings: SamplingSettings
    n: int
    salt: str
    param: str
    """The field that the prompt came in, by which errors name it."""
    constraint: Constraint | None = None


def asked_of(
    served: Served,
    request: Request,
    *,
    param: str,
    logprobs: int | None,
    max_tokens: int | None,
    after: Sequence[int] | None,
    turn_end: int | None = None,
    schema: Mapping[str, Any] | None = None,
) -> Asked:
    """The settings of a request, and its constraint on a text that comes `after` ids.

    `turn_end` is a stop id that the chat template adds.
    """
    prompt_logprobs = request.prompt_logprobs
    if isinstance(request, CompletionRequest) and request.echo and logprobs is not None:
        prompt_logprobs = logprobs
    stop_ids = _stop_ids(served, request, turn_end)
    settings = _settings(
        served,
        request,
        max_new_tokens=served.context if max_tokens is None else max_tokens,
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        stop_ids=stop_ids,
    )
    size = served.engine.config.vocab_size
    constraint = constraint_of(
        request, served.tokenizer, size, schema, stop_ids=stop_ids, after=after
    )
    return Asked(settings, request.n, request.cache_salt, param, constraint)


def _settings(served: Served, request: Request, **more: Any) -> SamplingSettings:
    """The settings of a request: fields of the same name, and those that are named otherwise."""
    alike = {name: getattr(request, name) for name in ON_DEVICE}
    otherwise = {
        "min_new_tokens": request.min_tokens,
        "top_k": max(request.top_k, 0),
        "seed": None if request.seed is None else request.seed % 2**32,
        "logit_bias": _biases(served, request.logit_bias),
        "stop": [request.stop] if isinstance(request.stop, str) else request.stop,
    }
    try:
        return SamplingSettings(**alike | otherwise | more)
    except ValueError as error:
        raise refused(error, "stop") from None


def _stop_ids(served: Served, request: Request, turn_end: int | None) -> tuple[int, ...] | None:
    size, own = served.engine.config.vocab_size, served.tokenizer.stop_ids
    if wrong := [id for id in request.stop_token_ids if not 0 <= id < size]:
        said = f"stop_token_ids has {wrong[0]}, and the model knows 0 to {size - 1}"
        raise bad(said, "stop_token_ids", "invalid_value")
    if request.ignore_eos:
        return tuple(request.stop_token_ids)
    more = [*request.stop_token_ids, *([] if turn_end is None else [turn_end])]
    return (*own, *more) if more else None


def _biases(served: Served, given: Mapping[str, float]) -> dict[int, float]:
    size = served.engine.config.vocab_size
    if len(given) > limits.MAX_BIASES:
        said = f"logit_bias has {len(given)} ids; at most {limits.MAX_BIASES} are taken"
        raise bad(said, "logit_bias", "invalid_value")
    for id in given:
        if not (_WORD.fullmatch(id) and 0 <= int(id) < size):
            said = f"logit_bias has {id[:40]!r}; its names are token ids from 0 to {size - 1}"
            raise bad(said, "logit_bias", "invalid_value")
    return {int(id): bias for id, bias in given.items()}
