"""A command that names no checkpoint: the model that comes with the package."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

_FILES = (
    "A folder with a model: Meta's download, Hugging Face's, or one that `convert` wrote; a GGUF "
    "file; hf:ORG/NAME of the Hub; or a name: "
)


def _model(said: str) -> Any:
    return typer.Argument(metavar="CHECKPOINT", help=_FILES + said, show_default=False)


OwnOrNamed = Annotated[
    str | None,
    _model(
        "stories, smollm2. Without one, it is the model that comes with the package, which tells "
        "stories"
    ),
]
ChatModel = Annotated[
    str | None,
    _model("smollm2. The model that comes with the package only tells stories, so name one"),
]
OWN = "no checkpoint is named; the model that comes with the package tells stories"


def named_and_prompts(first: str | None, rest: Sequence[str]) -> tuple[Path | None, list[str]]:
    """The checkpoint that a command's first argument names, if it names one, and the prompts.

        checkpoints/demo "Once upon"   the checkpoint, and one prompt
        "Once upon" "One day"          no checkpoint, and two prompts
        "my models/demo" "Once"        the checkpoint, if that is a path of something

    A checkpoint has no white space in its name, or it exists; all else is a prompt, "" too. So a
    mistyped path is never taken for a prompt, and a prompt of one word needs a checkpoint before
    it, if only `stories`.
    """
    if first is None:
        return None, list(rest)
    if first and (not any(map(str.isspace, first)) or os.path.exists(os.path.expanduser(first))):
        return Path(first), list(rest)
    return None, [first, *rest]
