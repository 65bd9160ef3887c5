"""Which tokens of a dialog the assistant wrote, by a checkpoint's own chat template."""

from __future__ import annotations

import itertools
import re
import secrets
from collections.abc import Callable, Mapping, Sequence

from llama_jax.tokenizer.chat_template import ChatTemplate
from llama_jax.tokenizer.hidden_controls import Encode, HiddenControls
from llama_jax.tokenizer.protocol import Answers, Message

Located = tuple[int, tuple[int, int]]
"""An id, and where in the text its token begins and ends."""


def located(ids: Sequence[int], spelled: Sequence[bytes], begin: int) -> list[Located]:
    """The ids of a text that begins at `begin`, by what each token spells of it.

    A token that spells a part of a character has the character, and one that spells nothing, such
    as a leading space of its own, has the character after it.
    """
    found, begun = [], begin
    for id, token in zip(ids, spelled, strict=True):
        starts = [byte & 0xC0 != 0x80 for byte in token]  # of characters, in UTF-8
        last = begun + sum(starts)
        found.append((id, (begun if not token or starts[0] else begun - 1, last + (not token))))
        begun = last
    return found


def encode_marked_answers(
    template: ChatTemplate,
    messages: Sequence[Message],
    *,
    locate: Encode[Located],
    special: Mapping[str, int],
) -> Answers:
    """The ids of a dialog; the assistant wrote what the template has in `{% generation %}`.

    A token that is partly in such a part counts as the assistant's. `messages` are checked ones.
    """
    hidden = HiddenControls(special)
    begin, end = (f"{secrets.randbits(128):039d}" for _ in range(2))
    shown = template.render(messages, opened=False, marks=(begin, end), hide=hidden.hide)
    parts = re.split(f"{begin}|{end}", shown)
    ends = list(itertools.accumulate(len(hidden.reveal(part)) for part in parts))
    spans = list(zip(ends[:-1:2], ends[1::2], strict=True))
    writers = _writers(messages, len(spans))

    def encode(text: str, controls: bool, begins: bool) -> list[int]:
        return [id for id, _ in locate(text, controls, begins)]

    ids, found, before = [], [], 0
    for n, (text, controls) in enumerate(hidden.runs("".join(parts), encode)):
        for id, (first, last) in locate(text, controls, n == 0):
            ids.append(id)
            inside = (
                writer
                for writer, (start, stop) in zip(writers, spans, strict=True)
                if before + first < stop and before + last > start
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
    `messages` are checked ones.
    """
    ids: list[int] = []
    writers: list[int] = []
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        if index == 0:
            raise ValueError(
                "message 0 is the assistant's, and no message stands before it that it answers; "
                "begin with the system's or a user's"
            )
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
