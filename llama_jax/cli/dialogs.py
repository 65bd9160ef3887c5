"""Whether a checkpoint is one to talk with, asked before any weight is read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llama_jax.checkpoint.source import Source
    from llama_jax.cli.prompts import Asked
    from llama_jax.tokenizer import Tokenizer

TELLS_STORIES = (
    "the model that comes with the package only tells stories, and answers nothing: "
    '`llama-jax generate "Once upon a time"`. To chat, name a chat model: '
    "`llama-jax chat smollm2`, a folder, or hf:ORG/NAME"
)
_NAMED = re.compile(r"instruct|chat", re.IGNORECASE)


def is_instruct(source: Source, tokenizer: Tokenizer | None) -> bool:
    """Whether a checkpoint has a chat template, or is called what Meta calls its chat models."""
    from llama_jax.checkpoint.origin import repository_of
    from llama_jax.tokenizer.with_template import WithTemplate

    if not isinstance(tokenizer, WithTemplate):  # every kind of ours is one
        return False
    called = (repository_of(source) or str(source.path.resolve())).rpartition("/")[2]
    return tokenizer.has_template or _NAMED.search(called) is not None


def check_dialogs(source: Source, tokenizer: Tokenizer | None, *, otherwise: str) -> None:
    """ValueError unless the checkpoint says how it writes a dialog; it ends in the way out."""
    from llama_jax.checkpoint.named import PRETRAINED
    from llama_jax.tokenizer.with_template import WithTemplate

    if source.path == PRETRAINED:
        raise ValueError(TELLS_STORIES)
    if tokenizer is None:
        raise ValueError(f"{source.path} has no tokenizer, and a dialog is text")
    try:
        if isinstance(tokenizer, WithTemplate):
            tokenizer.check_dialogs()
    except ValueError as error:
        raise ValueError(
            f"{source.path} is no chat model: {error}. To continue a text, {otherwise}"
        ) from None


def can_chat(source: Source, tokenizer: Tokenizer | None) -> bool:
    """Whether a model can be talked with; another only continues texts."""
    try:
        check_dialogs(source, tokenizer, otherwise="")
    except ValueError:
        return False
    return True


def format_notes(source: Source, tokenizer: Tokenizer | None) -> list[str]:
    """What to know of a model of which only its maker can say that it was trained on dialogs."""
    name = getattr(tokenizer, "dialog_format", None)  # every kind of ours has it
    if name is None or is_instruct(source, tokenizer):
        return []
    return [f"dialogs are written in {name}'s format; a model that never saw it answers poorly"]


def dialog_notes(asked: Sequence[Asked], source: Source, tokenizer: Tokenizer | None) -> list[str]:
    """The same where any prompt is a dialog; one that the checkpoint cannot write is an error."""
    from llama_jax.generation.prompts import is_dialog

    dialogs = [one for one in asked if one.error is None and is_dialog(one.prompt)]
    if not dialogs:
        return []
    try:
        check_dialogs(source, tokenizer, otherwise='give "prompt"')
    except ValueError as error:
        for one in dialogs:
            one.error = f"{one.where}: {error}"
        return []
    return format_notes(source, tokenizer)
