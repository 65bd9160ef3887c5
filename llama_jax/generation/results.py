"""What generation and scoring return."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from llama_jax.field_docs import with_field_docs

FinishReason = Literal["stop", "length", "error", "cancelled"]
"""A stop id or a stop string; `max_new_tokens` or the context's end; logits that are no numbers; a
request to an engine that was cancelled."""


@with_field_docs
@dataclasses.dataclass(frozen=True)
class TokenLogprob:
    """How likely a token was at its place, by the raw logits."""

    token: int
    logprob: float
    top: dict[int, float]
    """The likeliest tokens there with their log-probabilities, the likeliest first."""

    @classmethod
    def of(cls, token: Any, logprob: Any, ids: np.ndarray, logprobs: np.ndarray) -> TokenLogprob:
        """From arrays; as many of `logprobs` as there are `ids`."""
        top = dict(zip(ids.tolist(), logprobs.tolist(), strict=False))
        return cls(int(token), float(logprob), top)

    def first(self, k: int) -> TokenLogprob:
        """The same with the `k` likeliest only."""
        return dataclasses.replace(self, top=dict(list(self.top.items())[:k]))


@with_field_docs
@dataclasses.dataclass(frozen=True)
class Delta:
    """What one row of a stream gained."""

    row: int
    """Which completion gained it, in the order of the prompts."""
    text: str
    """Certain text only: half a character, or what may become a stop string, waits."""
    tokens: list[int]
    """Without a stop token."""
    logprobs: list[TokenLogprob] | None
    """One a token, if the settings asked for them."""
    finish_reason: FinishReason | None
    """Set on a row's last delta alone."""
    stop_token: int | None = None
    """The stop id at which the row ended; set on its last delta alone."""
    stop_logprob: TokenLogprob | None = None
    """The log-probability of `stop_token`, if the settings asked for log-probabilities."""


@with_field_docs
@dataclasses.dataclass(frozen=True)
class Completion:
    """What a model wrote after one prompt."""

    text: str | None
    """What continues the prompt: prompt + text is the whole. None without a tokenizer."""
    tokens: list[int]
    """The new tokens, without the prompt's and without a stop token."""
    finish_reason: FinishReason
    """Why it ended: at a stop, at `max_new_tokens` or the context's end ("length"), because its
    logits were NaN or infinite ("error", in a `NaNLogitsError` alone), or by `Stream.cancel`."""
    logprobs: list[TokenLogprob] | None = None
    """One entry for each new token, if the settings asked for them."""
    prompt_logprobs: list[TokenLogprob | None] | None = None
    """One entry for each token of the prompt; None for the first, which follows nothing."""
    stop_token: int | None = None
    """The stop id at which it ended, if one did. It is none of `tokens`."""
    stop_logprob: TokenLogprob | None = None
    """The log-probability of `stop_token`, if the settings asked for log-probabilities."""

    @classmethod
    def of(
        cls,
        parts: Sequence[Delta],
        *,
        spelled: bool,
        prompt_logprobs: list[TokenLogprob | None] | None,
    ) -> Completion:
        """What a row gained, put together. `spelled`: whether a tokenizer made its text."""
        wanted = any(part.logprobs is not None for part in parts)
        end = parts[-1] if parts else Delta(0, "", [], None, None)
        return cls(
            text="".join(part.text for part in parts) if spelled else None,
            tokens=[token for part in parts for token in part.tokens],
            finish_reason=end.finish_reason or "cancelled",
            logprobs=[x for part in parts for x in part.logprobs or []] if wanted else None,
            prompt_logprobs=prompt_logprobs,
            stop_token=end.stop_token,
            stop_logprob=end.stop_logprob,
        )


@with_field_docs
@dataclasses.dataclass(frozen=True)
class Score:
    """How likely a model holds a text."""

    tokens: list[int]
    """The text's, bos included."""
    logprobs: list[float]
    """The log-probability of each token after the first, given those before it."""

    @property
    def nll(self) -> float:
        """The negative log-likelihood, in nats."""
        return -math.fsum(self.logprobs)

    @property
    def perplexity(self) -> float:
        """exp of the mean negative log-likelihood of the tokens after the first."""
        return exp_of_mean(self.nll, len(self.logprobs))


@with_field_docs
@dataclasses.dataclass(frozen=True)
class Perplexity:
    """The likelihood of a long text that is read by windows."""

    nll: float
    """In nats, over all scored tokens."""
    tokens: int
    """How many were scored: all but the first."""

    @property
    def value(self) -> float:
        """exp(nll / tokens)."""
        return exp_of_mean(self.nll, self.tokens)


def exp_of_mean(nll: float, tokens: int) -> float:
    """exp(nll / tokens): infinite where no float is so large, NaN of no tokens."""
    try:
        return math.exp(nll / tokens) if tokens else math.nan
    except OverflowError:
        return math.inf


class NaNLogitsError(ValueError):
    """A model gave logits that are NaN or infinite, which say nothing of a token.

    The other rows are computed to their ends all the same, and are in `results`.
    """

    def __init__(self, what: str, rows: Sequence[Any], results: Sequence[Any] = ()) -> None:
        named = ", ".join(map(str, rows[:5])) + (f" and {len(rows) - 5} more" if rows[5:] else "")
        where = f"{what} {named}".strip()
        super().__init__(
            f"the logits of {where} are NaN or infinite; the weights are damaged, or too large for "
            "float16: compare the checkpoint with its original by `llama-jax verify`, "
            'or load it with dtype="float32"'
        )
        self.rows = list(rows)
        """The indices of those that failed."""
        self.results = list(results)
        """What `generate` or `score` would have returned, those that failed as far as they came."""
        self._what = what

    def __reduce__(self) -> Any:  # a pool of processes sends its errors pickled
        return type(self), (self._what, self.rows, self.results)
