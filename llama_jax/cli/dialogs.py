"""Whether a checkpoint is one to talk with, asked before any weight is read."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llama_jax.checkpoint.source import Source
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


def format_note(source: Source, tokenizer: Tokenizer) -> str | None:
    """What to know of a model of which only its maker can say that it was trained on dialogs."""
    name = getattr(tokenizer, "dialog_format", None)  # every kind of ours has it
    if name is None or is_instruct(source, tokenizer):
        return None
    return f"dialogs are written in {name}'s format; a model that never saw it answers poorly"
