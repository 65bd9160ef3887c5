"""What clients are sent: a struct an answer, field by field as OpenAI's clients read them."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import UNSET, Struct, UnsetType

Reason = Literal["stop", "length", "tool_calls"]


class Details(Struct):
    """Prompt tokens that were not read again, since an earlier request had begun alike."""

    cached_tokens: int


class Usage(Struct):
    """Tokens read and written. A prompt counts once for all `n`; a stop token does not count."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: Details


class LegacyLogprobs(Struct):
    """Log-probabilities of completions. The stop token that ended a text is the last entry."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]

    def extend(self, more: LegacyLogprobs) -> None:
        """Goes on with those of the next tokens."""
        self.tokens += more.tokens
        self.token_logprobs += more.token_logprobs
        self.top_logprobs += more.top_logprobs
        self.text_offset += more.text_offset


class CompletionChoice(Struct):
    """One continuation, or what a chunk adds to it."""

    index: int
    text: str
    logprobs: LegacyLogprobs | None = None
    finish_reason: Reason | None = None
    prompt_logprobs: list[dict[str, Any] | None] | UnsetType = UNSET


class Completions(Struct, kw_only=True):
    """The answer to /v1/completions, or a chunk of it."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | UnsetType | None = UNSET
    system_fingerprint: str | None = None


class TopLogprob(Struct):
    """An alternative at a token."""

    token: str
    logprob: float
    bytes: list[int] | None


class ChatLogprob(TopLogprob):
    """A token, and the likeliest at its place."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(Struct):
    """Log-probabilities of an answer."""

    content: list[ChatLogprob]
    refusal: None = None


class CalledFunction(Struct):
    """The function that the model calls, and its arguments as JSON in a text."""

    name: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET


class ToolCall(Struct, kw_only=True):
    """A call, or what a chunk adds to it; chunks have its `index`."""

    index: int | UnsetType = UNSET
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET
    function: CalledFunction


class ChatMessage(Struct, kw_only=True):
    """What the model answered."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    tool_calls: list[ToolCall] | UnsetType = UNSET


class ChatChoice(Struct):
    """One answer."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: Reason


class Chat(Struct, kw_only=True):
    """The answer to /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    system_fingerprint: str | None = None
    prompt_logprobs: list[dict[str, Any] | None] | UnsetType = UNSET


class ChatDelta(Struct, kw_only=True):
    """What a chunk adds to an answer."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    tool_calls: list[ToolCall] | UnsetType = UNSET


class ChunkChoice(Struct):
    """One answer's part of a chunk."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: Reason | None = None


class ChatChunk(Struct, kw_only=True):
    """A chunk of a streamed answer."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | UnsetType | None = UNSET
    system_fingerprint: str | None = None


class Model(Struct, kw_only=True):
    """A model that is served."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "llama_jax"
    max_model_len: int
    chat: bool


class Models(Struct, kw_only=True):
    """The answer to /v1/models."""

    object: Literal["list"] = "list"
    data: list[Model]


class Tokenized(Struct, kw_only=True):
    """The answer to /tokenize."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class Detokenized(Struct):
    """The answer to /detokenize."""

    prompt: str


class ErrorDetails(Struct):
    """What is wrong, with which field."""

    message: str
    type: str
    param: str | None
    code: str | None


class Error(Struct):
    """The answer to what cannot be done."""

    error: ErrorDetails
