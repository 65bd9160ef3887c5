"""/v1/completions: texts continued, whole or in chunks."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from msgspec import UNSET

from llama_jax.generation.results import Delta
from llama_jax.serve import limits
from llama_jax.serve.openai.answers import CompletionChoice, Completions, LegacyLogprobs, Reason
from llama_jax.serve.openai.errors import bad
from llama_jax.serve.openai.flow import Answering
from llama_jax.serve.openai.logprobs import LegacyForm, Spelling, prompt_form
from llama_jax.serve.openai.requests import CompletionRequest
from llama_jax.serve.openai.served import Asked, Served, asked_of
from llama_jax.tokenizer import detokenize

if TYPE_CHECKING:
    from llama_jax.serve.stream import Stream


def asked_for(served: Served, request: CompletionRequest) -> tuple[list[list[int]], Asked]:
    """The prompts' ids, and what is asked of the engine for each."""
    served.check_name(request.model)
    if request.best_of is not None and request.best_of != request.n:
        raise bad(
            f"best_of={request.best_of} is not n={request.n}: all completions are returned, none "
            "is chosen; leave it out",
            "best_of",
        )
    prompts = _prompts(served, request)
    asked = asked_of(
        served,
        request,
        param="prompt",
        logprobs=request.logprobs,
        max_tokens=request.max_tokens,
        after=prompts[0] if len(prompts) == 1 else None,
    )
    return prompts, asked


def _prompts(served: Served, request: CompletionRequest) -> list[list[int]]:
    """One text or list of ids, or a list of them."""
    given = request.prompt
    if isinstance(given, str):
        return [_text(served, request, given, "prompt")]
    if all(isinstance(one, int) for one in given):
        return [served.check_ids(given, "prompt")]  # type: ignore[arg-type]
    if len(given) > limits.MAX_PROMPTS:
        said = f"prompt has {len(given)} prompts; at most {limits.MAX_PROMPTS} are taken at once"
        raise bad(said, "prompt", "invalid_value")
    found = []
    for i, one in enumerate(given):
        if isinstance(one, int):
            raise bad("prompt mixes ids with prompts; send a list of either", "prompt")
        name = f"prompt[{i}]"
        if isinstance(one, str):
            found.append(_text(served, request, one, name))
        else:
            found.append(served.check_ids(one, name))
    return found


def _text(served: Served, request: CompletionRequest, text: str, name: str) -> list[int]:
    ids = served.encode(text, name, bos=request.add_special_tokens)
    return served.check_ids(ids, name)


class _Writer:
    """One completion as it grows. Host state."""

    def __init__(
        self, served: Served, request: CompletionRequest, stream: Stream, index: int
    ) -> None:
        self._served, self._request, self._stream = served, request, stream
        self._index, self._begun, self._text = index, False, ""
        after = () if request.echo else stream.prompt
        self._form = LegacyForm(Spelling(served.tokenizer, after))
        self._entries = LegacyLogprobs([], [], [], [])
        self._of_prompt: Any = UNSET

    def part(self, delta: Delta) -> CompletionChoice | None:
        """What a delta adds; None where nothing is to be seen of it yet."""
        if not self._begun:
            self._begin()
        self._text += delta.text
        if self._request.logprobs is not None:
            tokens, entries = delta.tokens, delta.logprobs or []
            if delta.stop_token is not None and delta.stop_logprob is not None:
                tokens, entries = [*tokens, delta.stop_token], [*entries, delta.stop_logprob]
            self._entries.extend(self._form.entries(tokens, entries))
        if not self._text and delta.finish_reason is None:
            return None
        found = CompletionChoice(
            self._index,
            self._text,
            self._entries if self._request.logprobs is not None else None,
            _reason(delta.finish_reason),
            self._of_prompt,
        )
        self._text, self._entries, self._of_prompt = "", LegacyLogprobs([], [], [], []), UNSET
        return found

    def _begin(self) -> None:
        """The prompt's part, once the engine has read it."""
        self._begun = True
        tokenizer, prompt = self._served.tokenizer, self._stream.prompt
        scored = self._stream.prompt_logprobs
        if self._request.echo:
            self._text = detokenize(tokenizer, prompt)
            if self._request.logprobs is not None:
                self._entries = self._form.entries(prompt, scored or [None] * len(prompt))
        if self._request.prompt_logprobs is not None and scored is not None:
            self._of_prompt = prompt_form(tokenizer, prompt, scored)


def _reason(reason: str | None) -> Reason | None:
    return "stop" if reason == "stop" else "length" if reason is not None else None


async def _parts(
    served: Served, request: CompletionRequest, answering: Answering
) -> AsyncIterator[CompletionChoice]:
    writers = [
        _Writer(served, request, stream, i * answering.n + j)
        for i, stream in enumerate(answering.streams)
        for j in range(answering.n)
    ]
    async for index, delta in answering.deltas():
        if (part := writers[index].part(delta)) is not None:
            yield part


async def whole(served: Served, request: CompletionRequest, answering: Answering) -> Completions:
    """The answer in one piece."""
    found: dict[int, CompletionChoice] = {}
    texts: dict[int, list[str]] = {}
    async for part in _parts(served, request, answering):
        texts.setdefault(part.index, []).append(part.text)
        if (one := found.setdefault(part.index, part)) is part:
            continue
        one.finish_reason = part.finish_reason
        if one.logprobs is not None and part.logprobs is not None:
            one.logprobs.extend(part.logprobs)
    for index, one in found.items():
        one.text = "".join(texts[index])
    choices = [found[index] for index in sorted(found)]
    return _answer(served, answering, choices, usage=answering.usage)


async def chunks(
    served: Served, request: CompletionRequest, answering: Answering
) -> AsyncIterator[Completions]:
    """The answer as it comes; at its end, where asked for, what it used."""
    counted = request.counts_usage
    usage = None if counted else UNSET
    async for part in _parts(served, request, answering):
        yield _answer(served, answering, [part], usage=usage)
    if counted:
        yield _answer(served, answering, [], usage=answering.usage)


def _answer(
    served: Served, answering: Answering, choices: list[CompletionChoice], *, usage: object
) -> Completions:
    return Completions(
        id=f"cmpl-{answering.id}",
        created=answering.created,
        model=served.name,
        choices=choices,
        usage=usage,  # type: ignore[arg-type]
    )
