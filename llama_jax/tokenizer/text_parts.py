"""Contents as parts of text, for a chat template that looks into them and writes no plain text.

Llama Guard 3 1B's takes lists of {"type": "text", "text": ...} and finds none in a text: the model
would be shown a dialog without its questions.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Messages = Sequence[Mapping[str, Any]]
_LOOKS = re.compile(r"""\.text\b|['"]text['"]""")
_WHOLE_PART = re.compile(r"""['"]type['"]: *['"]text['"]""")


def may_take_parts(source: str) -> bool:
    """Whether a template may look for the text of a part."""
    return _LOOKS.search(source) is not None


def written_with_parts(messages: Messages, write: Callable[..., str]) -> str:
    """What a template writes; where it lacks users' contents, with those as parts that it lacks.

    The parts stay where more of the users' contents come of them, and no part itself: a template
    may cut a text, and would write a list out. `write(messages=...)` tells it of other messages.
    """
    text = write()
    if not (missing := _lost(messages, text, "user")):
        return text
    lost = {n for role in ("system", "user", "assistant") for n in _lost(messages, text, role)}
    parted = [_in_parts(said) if n in lost else said for n, said in enumerate(messages)]
    with contextlib.suppress(Exception):  # a template can fail at a list in any way, too
        other = write(messages=parted)
        better = len(_lost(messages, other, "user")) < len(missing)
        return other if better and not _WHOLE_PART.search(other) else text
    return text


def _in_parts(message: Mapping[str, Any]) -> Mapping[str, Any]:
    return {**message, "content": [{"type": "text", "text": message["content"]}]}


def _lost(messages: Messages, text: str, role: str) -> list[int]:
    """The messages of a role whose content is no part of what a template wrote."""
    found, at = [], 0
    for index, message in enumerate(messages):
        content = message.get("content")
        if message["role"] != role or not isinstance(content, str):
            continue
        place = text.find(content.strip(), at)
        place = text.find(content.strip()) if place < 0 else place
        if place < 0:
            found.append(index)
        else:
            at = place
    return found
