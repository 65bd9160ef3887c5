"""The sampling options of `generate`: all that `SamplingSettings` knows."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from typing import TYPE_CHECKING, Annotated

from llama_jax.cli import options
from llama_jax.cli.console import UsageError
from llama_jax.cli.text_input import argument, unescaped

if TYPE_CHECKING:
    from llama_jax.generation.settings import SamplingSettings


@dataclasses.dataclass(frozen=True)
class Sampling(options.Sampling):
    """What can be asked of texts that a program reads, and not of a conversation."""

    presence_penalty: Annotated[
        float,
        options.sampling_option(
            metavar="X", help="Subtracted from the logit of every token the text has; 0 is none"
        ),
    ] = 0.0
    frequency_penalty: Annotated[
        float,
        options.sampling_option(
            metavar="X", help="The same, once for each time it has it; 0 is none"
        ),
    ] = 0.0
    logit_bias: Annotated[
        list[str] | None,
        options.sampling_option(
            metavar="ID=X",
            help="Add X to the logit of token ID; -inf forbids it; may be repeated",
        ),
    ] = None
    min_new_tokens: Annotated[
        int,
        options.sampling_option(
            metavar="N", help="Do not stop, at a stop token or at --stop, before N tokens", min=0
        ),
    ] = 0
    stop: Annotated[
        list[str] | None,
        options.sampling_option(
            metavar="TEXT",
            help=r"End before this text; \n, \t, \\ and \u00e9 are escapes; may be repeated",
        ),
    ] = None
    stop_id: Annotated[
        list[int] | None,
        options.sampling_option(
            metavar="ID",
            help="End at this token, and not at the model's own stop tokens; may be repeated",
            min=0,
        ),
    ] = None
    seed: Annotated[
        int,
        options.sampling_option(
            "--seed",
            "-s",
            metavar="N",
            help="Start of the random draws: the same seed gives the same text again. Each "
            "further prompt or sample takes the next number",
            min=0,
            max=2**32 - 1,
        ),
    ] = 0
    logprobs: Annotated[
        int | None,
        options.sampling_option(
            metavar="K",
            help="With --json: each new token's log-probability, and the K likeliest",
            min=0,
            max=20,
        ),
    ] = None
    prompt_logprobs: Annotated[
        int | None,
        options.sampling_option(
            metavar="K", help="The same for the prompt's tokens", min=0, max=20
        ),
    ] = None

    def settings(self) -> SamplingSettings:
        """The same, checked; what was not asked for is as it always is."""
        from llama_jax.generation.settings import SamplingSettings

        given = {k: v for k, v in vars(self).items() if v not in (None, [], ())}
        stop_ids = given.pop("stop_id", None)
        given["stop"] = [_stop(text) for text in given.pop("stop", ())]
        given["logit_bias"] = dict(map(_bias, given.pop("logit_bias", ())))
        return SamplingSettings(stop_ids=stop_ids, **given)


def _stop(given: str) -> str:
    text = unescaped(argument(given, "--stop"), "--stop")
    if not text:
        raise UsageError("--stop '' is no text; give the one to end before, or leave --stop out")
    return text


def _bias(given: str) -> tuple[int, float]:
    id, _, bias = given.partition("=")
    with contextlib.suppress(ValueError):
        if float(bias) < math.inf:  # nor is NaN
            return int(id), float(bias)
    raise UsageError(
        f"--logit-bias {given!r} must be a token id and a number, such as 42=-1.5 or 42=-inf"
    )
