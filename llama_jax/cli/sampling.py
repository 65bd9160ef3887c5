"""The sampling options: one for each number of `SamplingSettings`, and those that are lists."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from llama_jax.cli.console import UsageError
from llama_jax.cli.options import sampling_option
from llama_jax.cli.text_input import argument, unescaped
from llama_jax.field_docs import field_docs
from llama_jax.generation.limits import LARGEST
from llama_jax.generation.settings import NUMBERS, ON_DEVICE, SamplingSettings

_LETTERS = {
    "max_new_tokens": ("-n", "N"),
    "temperature": ("-t", "T"),
    "top_p": ("-p", "P"),
    "top_k": ("-k", "K"),
    "seed": ("-s", "N"),
    "logprobs": (None, "K"),
    "prompt_logprobs": (None, "K"),
}
"""The letters that stand for an option and for its value. Others have N or X for their value."""
_SEED = "Start of the random draws: the same seed gives the same text again"
_SAID = field_docs(SamplingSettings) | {"seed": _SEED}
"""What `--help` says of each: what the documentation of the field does."""


def _options(names: Iterable[str], base: type = object, said: Mapping[str, str] = _SAID) -> Any:
    """A dataclass with an option for each of these numbers, which has the setting's bounds."""
    fields = [
        (name, _option(NUMBERS[name], said.get(name, "")), NUMBERS[name].default) for name in names
    ]
    return dataclasses.make_dataclass("_Options", fields, bases=(base,), frozen=True)


def _option(setting: dataclasses.Field[Any], said: str) -> Any:
    bounds = setting.metadata
    kind: type = int if bounds["integer"] else float
    low, high = [kind(x) if math.isfinite(x) else None for x in (bounds["low"], bounds["high"])]
    letter, value = _LETTERS.get(setting.name, (None, "N" if kind is int else "X"))
    names = [f"--{setting.name.replace('_', '-')}", *([letter] if letter else [])]
    said = said.removesuffix(".")
    if bounds["is_open"]:  # which no option can check
        said, low = f"{said}. {value} is above {low:g}", None
    option = sampling_option(*names, metavar=value, help=said, min=low, max=high)
    return Annotated[kind | None if setting.default is None else kind, option]


_ANYWHERE: Any = _options(["max_new_tokens", *ON_DEVICE])


@dataclasses.dataclass(frozen=True)
class Sampling(_ANYWHERE):
    """The settings that everything takes which writes text."""

    def settings(self) -> SamplingSettings:
        """The same, checked."""
        return SamplingSettings(**vars(self))


_FOR_TEXTS: Any = _options(
    ["seed", "min_new_tokens", "logprobs", "prompt_logprobs"],
    Sampling,
    {
        "seed": f"{_SEED}. Each further prompt or sample takes the next number",
        "min_new_tokens": "Do not stop, at a stop token or at --stop, before N tokens",
        "logprobs": "With --json: each new token's log-probability, and the K likeliest",
        "prompt_logprobs": "The same for the prompt's tokens",
    },
)


@dataclasses.dataclass(frozen=True)
class TextSampling(_FOR_TEXTS):
    """And what can be asked of texts that a program reads, and not of a conversation."""

    logit_bias: Annotated[
        list[str] | None,
        sampling_option(
            metavar="ID=X",
            help="Add X to the logit of token ID; -inf forbids it; may be repeated",
        ),
    ] = None
    stop: Annotated[
        list[str] | None,
        sampling_option(
            metavar="TEXT",
            help=r"End before this text; \n, \t, \\ and \u00e9 are escapes; may be repeated",
        ),
    ] = None
    stop_id: Annotated[
        list[int] | None,
        sampling_option(
            metavar="ID",
            help="End at this token, and not at the model's own stop tokens; may be repeated",
            min=0,
        ),
    ] = None

    def settings(self) -> SamplingSettings:
        """The same, checked; what was not asked for is as it always is."""
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
        if float(bias) == -math.inf or abs(float(bias)) <= LARGEST:  # which no NaN is
            return int(id), float(bias)
    raise UsageError(
        f"--logit-bias {given!r} must be a token id and a float32 number, such as 42=-1.5 or "
        "42=-inf"
    )
