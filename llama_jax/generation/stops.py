"""Where a completion ends: the ids of its settings, its tokenizer and its chat template."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

from llama_jax.config import Config
from llama_jax.generation.settings import SamplingSettings
from llama_jax.tokenizer import Message, Tokenizer, Tools


def ended_by_turn(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    settings: SamplingSettings,
    tools: Tools | None = None,
) -> SamplingSettings:
    """The settings of an answer to a dialog: the chat template's own end of a turn ends it too.

    A warning names that token where the checkpoint's files do not. `stop_ids` that were given stay.
    """
    turn_end = getattr(tokenizer, "turn_end", None)  # only a format read from files may need it
    end = turn_end(messages, tools=tools) if turn_end and settings.stop_ids is None else None
    if end is None or end[1] in tokenizer.stop_ids:
        return settings
    warnings.warn(
        f"the chat template ends an answer with {end[0]}, and the checkpoint's files do not say "
        "that a text ends there; the chat stops at it",
        stacklevel=2,
    )
    return settings.replace(stop_ids=(*tokenizer.stop_ids, end[1]))


def check_settings(config: Config, settings: SamplingSettings, tokenizer: Tokenizer | None) -> None:
    """ValueError where the settings name an id or a token that the model or its tokenizer lacks."""
    check_leaves_a_token(config, settings, stop_ids_of(config, settings, tokenizer))


def stop_ids_of(
    config: Config, settings: SamplingSettings, tokenizer: Tokenizer | None
) -> tuple[int, ...]:
    """The tokens that end a row, those whose names are among its stop strings included.

    A control token is no part of a text, so no text has its name where the model wrote the token.
    """
    known = max(config.vocab_size, 0 if tokenizer is None else tokenizer.vocab_size)
    if wrong := [id for id in settings.stop_ids or () if not 0 <= id < known]:
        raise ValueError(f"stop_ids= has token {wrong[0]}, and the model knows 0 to {known - 1}")
    if tokenizer is None:
        if settings.stop:
            raise ValueError(f"stop={settings.stop[0]!r} needs a tokenizer; use stop ids")
        return tuple(settings.stop_ids or ())
    names = tokenizer.special if settings.stop else {}
    for text in settings.stop:
        if inside := [name for name in names if name in text and name != text]:
            name = max(inside, key=len)
            raise ValueError(
                f"stop={text!r} holds {name!r}, which is a control token and no part of a text; "
                f"pass {name!r} as a stop string of its own, or its id, {names[name]}, as a stop id"
            )
    ids = tokenizer.stop_ids if settings.stop_ids is None else settings.stop_ids
    return tuple(dict.fromkeys([*ids, *(names[text] for text in settings.stop if text in names)]))


def check_leaves_a_token(
    config: Config, settings: SamplingSettings, stop_ids: Sequence[int]
) -> None:
    """ValueError where the settings bias or forbid what is no token, or forbid every one."""
    for name, ids in ("logit_bias", settings.logit_bias), ("forbidden_ids", settings.forbidden_ids):
        if wrong := [id for id in ids if not 0 <= id < config.vocab_size]:
            raise ValueError(
                f"{name}= has token {wrong[0]}, and the model knows 0 to {config.vocab_size - 1}"
            )
    forbidden = {id for id, bias in settings.logit_bias.items() if bias == -math.inf}
    forbidden |= {*settings.forbidden_ids}
    if settings.min_new_tokens:
        forbidden |= {id for id in stop_ids if 0 <= id < config.vocab_size}
    if len(forbidden) == config.vocab_size:
        raise ValueError("every token is forbidden; leave at least one that is no stop id")
