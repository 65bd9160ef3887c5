"""How to sample, as one value. The default and the bounds of each number are stated here.

The options of `generate` and `chat` are made of these fields. So are the fields of a server's
requests, unless `serve/openai/requests.py` states one otherwise. This file imports nothing heavy,
because `--help` reads it.
"""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from llama_jax.field_docs import with_field_docs
from llama_jax.generation.limits import LARGEST, MAX_LOGPROBS, SMALLEST
from llama_jax.validation import wrong_kind


def _number(
    default: Any,
    low: float,
    high: float = math.inf,
    *,
    integer: bool = False,
    optional: bool = False,
    is_open: bool = False,
    on_device: str | None = None,
    neutral: float = 0,
) -> Any:
    """A field that is a number from `low` to `high`, or above `low` where the range `is_open`.

    With a dtype `on_device`, each batch has it as an array of one number a row; rows that only pad
    the batch have the `neutral` value, which changes nothing.
    """
    bounds = {"low": low, "high": high, "integer": integer, "optional": optional}
    bounds["is_open"] = is_open
    device = {"on_device": on_device, "neutral": neutral}
    return dataclasses.field(default=default, metadata={**bounds, **device})


@with_field_docs
@dataclasses.dataclass(frozen=True)
class SamplingSettings:
    """The sampling settings of one completion. Changing one compiles nothing.

    The settings act in this order: the penalties, `logit_bias`, `forbidden_ids`, `min_new_tokens`,
    `temperature`, `top_k`, `top_p`, `min_p`, and then the draw. Each of the last three sees what
    the one before it left, its probabilities adding up to 1.
    """

    max_new_tokens: int = _number(256, 0, integer=True)
    """Ends a text after so many new tokens, if nothing ended it before."""
    temperature: float = _number(0.8, 0, on_device="float32", neutral=0)
    """How random the draw is: divides the logits; 0 takes the likeliest token."""
    top_p: float = _number(0.95, 0, 1, on_device="float32", neutral=1)
    """Keeps the likeliest tokens until their probabilities sum to more than this; 1 keeps all."""
    top_k: int = _number(0, 0, integer=True, on_device="int32", neutral=0)
    """Keeps this many of the likeliest tokens; 0 keeps all."""
    min_p: float = _number(0.0, 0, 1, on_device="float32", neutral=0)
    """Keeps tokens at least this fraction as likely as the likeliest; 0 keeps all."""
    seed: int | None = _number(
        0, 0, 2**32 - 1, integer=True, optional=True, on_device="uint32", neutral=0
    )
    """A draw depends on it and on the position in the text alone; None is a new one each time."""
    repetition_penalty: float = _number(1.0, 0, is_open=True, on_device="float32", neutral=1)
    """Divides the positive logits of tokens in prompt or text, and multiplies the negative ones:
    above 1 they become less likely; 1 is none."""
    presence_penalty: float = _number(0.0, -math.inf, on_device="float32", neutral=0)
    """Subtracted from the logit of each token that the text has used; 0 is none."""
    frequency_penalty: float = _number(0.0, -math.inf, on_device="float32", neutral=0)
    """Subtracted from a token's logit as often as the text has used it; 0 is none."""
    logit_bias: Mapping[int, float] = dataclasses.field(default_factory=dict)
    """Added to the logits of these ids; minus infinity forbids one."""
    forbidden_ids: Sequence[int] = ()
    """Tokens that are never drawn."""
    min_new_tokens: int = _number(0, 0, integer=True)
    """Until a completion has this many tokens, the stop ids are forbidden, and stop strings are
    text like any other."""
    stop_ids: Sequence[int] | None = None
    """Tokens that end a completion and are not part of it; None means the tokenizer's."""
    stop: Sequence[str] = ()
    """Strings that end a completion; its text ends before them, its tokens with them. The name of a
    control token, "<|eot_id|>" say, counts among `stop_ids` too."""
    logprobs: int | None = _number(None, 0, MAX_LOGPROBS, integer=True, optional=True)
    """Log-probabilities of the new tokens, and of this many likeliest at each; None is none."""
    prompt_logprobs: int | None = _number(None, 0, MAX_LOGPROBS, integer=True, optional=True)
    """The same for the prompt's tokens. The first has none."""

    def __post_init__(self) -> None:
        copies: dict[str, Any] = {
            name: _checked(field, getattr(self, name)) for name, field in NUMBERS.items()
        }
        copies |= {
            "logit_bias": _biases(self.logit_bias),
            "forbidden_ids": _ids("forbidden_ids", self.forbidden_ids),
            "stop_ids": None if self.stop_ids is None else _ids("stop_ids", self.stop_ids),
            "stop": _texts(self.stop),
        }
        for name, copy in copies.items():
            object.__setattr__(self, name, copy)

    def replace(self, **changes: Any) -> SamplingSettings:
        """These settings with some fields changed, checked again."""
        return dataclasses.replace(self, **changes)


NUMBERS = {field.name: field for field in dataclasses.fields(SamplingSettings) if field.metadata}
"""The settings that are a number, by name; `metadata` has what `_number` was given."""
ON_DEVICE = {name: field for name, field in NUMBERS.items() if field.metadata["on_device"]}
"""Those of which a batch has an array."""


def for_each(
    settings: SamplingSettings | Sequence[SamplingSettings] | None,
    changes: Mapping[str, Any],
    rows: int,
) -> list[SamplingSettings]:
    """One settings a row: the one given or one each, with the changes, which may be one each."""
    settings = SamplingSettings() if settings is None else settings
    if not isinstance(settings, SamplingSettings | Iterable) or isinstance(settings, Mapping):
        raise wrong_kind("settings", settings, "give SamplingSettings, or keywords")
    each = [settings] * rows if isinstance(settings, SamplingSettings) else list(settings)
    if wrong := [one for one in each if not isinstance(one, SamplingSettings)]:
        raise ValueError(f"settings has {wrong[0]!r}; give SamplingSettings, or keywords")
    if len(each) != rows:
        raise ValueError(f"{len(each)} settings for {rows} prompts; give one, or one each")
    known = [field.name for field in dataclasses.fields(SamplingSettings)]
    common = {}
    for name, value in changes.items():
        if name not in known:
            raise TypeError(f"{name!r} is no setting; the settings are {', '.join(known)}")
        if name in _LISTS or value is None or _is_one(value):
            common[name] = value
        elif len(value) != rows:
            raise ValueError(
                f"{name} has {len(value)} values for {rows} prompts; give one, or one each"
            )
        else:
            each = [one.replace(**{name: v}) for one, v in zip(each, value, strict=True)]
    if common and not rows:
        SamplingSettings(**common)  # a mistake is one whether or not there are prompts
    return [one.replace(**common) for one in each]


_LISTS = {"logit_bias", "forbidden_ids", "stop_ids", "stop"}


def _checked(field: dataclasses.Field[Any], value: Any) -> int | float | None:
    """The value as a number of Python's, whoever's it was; ValueError if it is not allowed."""
    name, low, high = field.name, field.metadata["low"], field.metadata["high"]
    if value is None and field.metadata["optional"]:
        return None
    if field.metadata["integer"]:
        integer = _integer(name, value)
        if not low <= integer <= high:
            raise ValueError(f"{name}={value!r} must be an integer {_bounds(low, high)}")
        return integer
    number, is_open = _float(value), field.metadata["is_open"]
    if is_open and not low + SMALLEST <= number <= high:
        raise ValueError(
            f"{name}={value!r} must be a number above {low}; {field.default:g} is none"
        )
    if not (low <= number <= high and math.isfinite(number)):
        raise ValueError(f"{name}={value!r} must be a finite number {_bounds(low, high)}".rstrip())
    return _of_float32(f"{name}={value!r}", number)


def _of_float32(said: str, number: float) -> float:
    if abs(number) > LARGEST:
        raise ValueError(f"{said} is too large; the largest number is float32's, {LARGEST:.2e}")
    return number


def _float(value: Any) -> float:
    """A real number as a float; NaN for everything else."""
    is_real = hasattr(value, "__float__") and not isinstance(value, bool) and _is_one(value)
    if not is_real or _kind(value) in ("b", "c"):  # bool and complex
        return math.nan
    try:
        return float(value)
    except OverflowError:  # of a larger integer
        return 2 * LARGEST if value > 0 else -2 * LARGEST
    except (TypeError, ValueError):
        return math.nan


def _kind(value: Any) -> str:
    """NumPy's letter for the kind of an array's numbers; "" of what is no array."""
    return getattr(getattr(value, "dtype", None), "kind", "")


def _is_one(value: Any) -> bool:
    """Whether it is one value, and no list or array of them."""
    if hasattr(value, "ndim"):
        return value.ndim == 0
    return not isinstance(value, Sequence) or isinstance(value, str | bytes)


def _texts(stop: Any) -> tuple[str, ...]:
    texts = tuple(stop) if isinstance(stop, Iterable) and not isinstance(stop, str) else None
    if texts is None or not all(isinstance(text, str) and text for text in texts):
        raise ValueError(f"stop={stop!r} must be a list of strings, none of them empty")
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        raise ValueError(f"stop={stop!r} has a lone surrogate, which is no character") from None
    return texts


def _ids(name: str, ids: Any) -> tuple[int, ...]:
    if not isinstance(ids, Iterable):
        raise ValueError(f"{name}={ids!r} must be a list of token ids")
    return tuple([_integer(name, id) for id in ids])


def _biases(biases: Any) -> dict[int, float]:
    if not isinstance(biases, Mapping):
        raise ValueError(f"logit_bias={biases!r} must be a dict from token ids to numbers")
    said, checked = "logit_bias has the id {value!r}, which", {}
    for id, bias in biases.items():
        number = _float(bias)
        if not number < math.inf:
            raise ValueError(
                f"logit_bias of {id} is {bias!r}; it must be a finite number, or minus infinity"
            )
        if number > -math.inf:
            _of_float32(f"logit_bias of {id} is {bias!r}, which", number)
        checked[_integer("", id, said)] = number
    return checked


def _integer(name: str, value: Any, said: str = "{name}={value!r}") -> int:
    try:
        if isinstance(value, bool) or _kind(value) == "b":
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{said.format(name=name, value=value)} must be an integer") from None


def _bounds(low: float, high: float) -> str:
    if math.isinf(low):
        return ""
    return f"from {low} to {high}" if math.isfinite(high) else f"of at least {low}"
