"""Dialogs from JSON lines, as examples to train on: their tokens, and which of them are trained."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from llama_jax.tokenizer import Tokenizer
from llama_jax.tokenizer.foreign import MAX_ERROR, plain
from llama_jax.train.corpus import read_objects

_SHAREGPT = {
    **{"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"},
    **{"system": "system", "tool": "tool"},
}
"""ShareGPT's names of who speaks, and ours."""
_KINDS = "messages; conversations (ShareGPT's); prompt and completion"


class Dialog(NamedTuple):
    """A dialog, and whether each of its messages is trained: the assistant's are, unless it says
    `"train": false`, or `"weight": 0` as OpenAI's files do.
    """

    messages: list[dict[str, Any]]
    trained: list[bool]
    place: str
    """The file and the line."""


class Example(NamedTuple):
    """The tokens of a dialog up to the last that is trained."""

    ids: list[int]
    trained: np.ndarray
    """bool, for each token: whether predicting it is trained."""


def read_dialogs(files: Sequence[Path]) -> Iterator[tuple[Dialog, int]]:
    """The dialogs of .jsonl files, in order, and the bytes read so far."""
    done = 0
    for file in files:
        for line, value, read in read_objects(file):
            place = f"{file}, line {line}"
            try:
                yield _dialog(value, place), done + read
            except ValueError as error:
                raise ValueError(f"{place}: {plain(error, MAX_ERROR)}") from None
        done += file.stat().st_size


def example_of(dialog: Dialog, tokenizer: Tokenizer) -> Example:
    """A dialog's tokens in the model's own format; ValueError where none would be trained."""
    last = max((i for i, trained in enumerate(dialog.trained) if trained), default=None)
    if last is None:
        raise ValueError(
            f"{dialog.place}: no message is trained: none is the assistant's without "
            '"train": false; remove the line'
        )
    try:
        ids, writers = tokenizer.encode_answers(dialog.messages[: last + 1])
    except ValueError as error:
        raise ValueError(f"{dialog.place}: {plain(error, MAX_ERROR)}") from None
    trained = np.array([writer >= 0 and dialog.trained[writer] for writer in writers], bool)
    trained[:1] = False  # nothing comes before it to predict it from
    if not trained.any():
        raise ValueError(
            f"{dialog.place}: no token is trained: the format gives the assistant's messages none"
        )
    end = int(np.flatnonzero(trained)[-1]) + 1
    return Example(ids[:end], trained[:end])


def _dialog(value: dict[str, Any], place: str) -> Dialog:
    if "messages" in value:
        given = _listed(value, "messages")
    elif "conversations" in value:
        given = [_from_sharegpt(one, i) for i, one in enumerate(_listed(value, "conversations"))]
    elif "prompt" in value and "completion" in value:
        prompt = _turns(value, "prompt", "user")
        given = [*({**one, "train": False} for one in prompt)]
        given += _turns(value, "completion", "assistant")
    else:
        known = ", ".join(map(repr, list(value)[:8])) or "none"
        raise ValueError(f"its keys are {known}; a dialog has {_KINDS}")
    messages, trained = [], []
    for index, one in enumerate(given):
        if not isinstance(one, dict):
            raise ValueError(f"message {index} is a {type(one).__name__}; it must be an object")
        message = dict(one)
        train = _popped_train(message, index)
        messages.append(message)
        trained.append(train)
    return Dialog(messages, trained, place)


def _popped_train(message: dict[str, Any], index: int) -> bool:
    """Whether a message is trained: by its "train", or OpenAI's "weight", or as the assistant's."""
    is_assistant = message.get("role") == "assistant"
    given = {key: message.pop(key) for key in ("weight", "train") if key in message}
    if not given:
        return is_assistant
    key, train = given.popitem()  # "train" where there are both
    if not isinstance(train, bool) and (key == "train" or train not in (0, 1)):
        known = "true or false" if key == "train" else "0 or 1"
        raise ValueError(f'message {index} has "{key}": {train!r}; it is {known}')
    if train and not is_assistant:
        raise ValueError(
            f'message {index} has "{key}": {json.dumps(train)} and role '
            f"{message.get('role')!r}; only the assistant's messages are trained"
        )
    return bool(train)


def _listed(value: dict[str, Any], key: str) -> list[Any]:
    if not isinstance(value[key], list) or not value[key]:
        raise ValueError(f"{key!r} must be a list of messages with at least one")
    return value[key]


def _turns(value: dict[str, Any], key: str, role: str) -> list[dict[str, Any]]:
    """A prompt or a completion: a text, or messages."""
    if isinstance(value[key], str):
        return [{"role": role, "content": value[key]}]
    found = _listed(value, key)
    if not all(isinstance(one, dict) for one in found):
        raise ValueError(f"{key!r} must be a text, or a list of messages")
    return found


def _from_sharegpt(one: Any, index: int) -> Any:
    if not isinstance(one, dict) or "from" not in one or "value" not in one:
        raise ValueError(f"message {index} of 'conversations' needs 'from' and 'value'")
    rest = {key: value for key, value in one.items() if key not in ("from", "value")}
    if not isinstance(one["from"], str) or one["from"] not in _SHAREGPT:
        raise ValueError(
            f"message {index} is from {one['from']!r}; it is one of "
            f"{', '.join(map(repr, _SHAREGPT))}"
        )
    return {"role": _SHAREGPT[one["from"]], "content": one["value"], **rest}
