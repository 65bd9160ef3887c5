"""Which tokens of a dialog the assistant wrote, by a checkpoint's own chat template."""

from __future__ import annotations

import itertools
import re
import secrets
from collections.abc import Callable, Mapping, Sequence

from llama_jax.tokenizer.chat_template import ROLES, ChatTemplate, HiddenControls
from llama_jax.tokenizer.dialog import check_messages
from llama_jax.tokenizer.protocol import Answers, Message

Located = list[tuple[int, tuple[int, int]]]
"""Ids, each with where in the text its token begins and ends."""


def encode_marked_answers(
    template: ChatTemplate,
    messages: Sequence[Message],
    *,
    encode: Callable[[str], Located],
    encode_text: Callable[[str], Located],
    special: Mapping[str, int],
) -> Answers:
    """The ids of a dialog; the assistant wrote what the template has in `{% generation %}`.

    A token that is partly in such a part counts as the assistant's.
    """
    hidden = HiddenControls(special)
    marks = tuple(f"{secrets.randbits(128):039d}" for _ in range(2))
    shown = template.render(hidden.messages(messages), opened=False, marks=marks)  # type: ignore[arg-type]
    parts = re.split("|".join(marks), shown)
    ends = list(itertools.accumulate(len(hidden.revealed(part)) for part in parts))
    spans = list(zip(ends[:-1:2], ends[1::2], strict=True))
    writers = _writers(messages, len(spans))

    def ids_of(located: Callable[[str], Located]) -> Callable[[str], list[int]]:
        return lambda text: [id for id, _ in located(text)]

    ids, found, before = [], [], 0
    for text, plain in hidden.runs("".join(parts), ids_of(encode), ids_of(encode_text)):
        for id, (begin, end) in (encode_text if plain else encode)(text):
            ids.append(id)
            inside = (
                writer
                for writer, (first, last) in zip(writers, spans, strict=True)
                if before + begin < last and before + end > first
            )
            found.append(next(inside, -1))
        before += len(text)
    return ids, found


def _writers(messages: Sequence[Message], count: int) -> list[int]:
    """The index of the message that each part is of."""
    assistants = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if len(assistants) != count:
        raise ValueError(
            f"the chat template marks {count} parts as the assistant's, and the dialog has "
            f"{len(assistants)} of its messages; mend the template's {{% generation %}}"
        )
    return assistants


def encode_answers_by_difference(
    messages: Sequence[Message],
    encode: Callable[[Sequence[Message], bool], list[int]],
    ends: Sequence[int],
) -> Answers:
    """The ids of a dialog; the assistant wrote what each of its messages adds to the ids before it.

    `encode` gives the ids of messages, and whether they go on to where the assistant answers.
    ValueError where a template changes what it wrote before: the difference then says nothing.
    What a template writes after the last of the tokens `ends` in a message is no answer.
    """
    check_messages(messages, ROLES)
    ids: list[int] = []
    writers: list[int] = []
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before, through = encode(messages[:index], True), encode(messages[: index + 1], False)
        if before[: len(ids)] != ids or through[: len(before)] != before:
            raise ValueError(
                f"the tokens that the chat template writes before message {index} depend on it, so "
                "the assistant's cannot be told apart; use a template with {% generation %}"
            )
        last = max(
            (i for i in range(len(before), len(through)) if through[i] in ends), default=None
        )
        count = len(through) if last is None else last + 1
        writers += [-1] * (len(before) - len(ids))
        writers += [index] * (count - len(before)) + [-1] * (len(through) - count)
        ids = through
    return ids, writers
