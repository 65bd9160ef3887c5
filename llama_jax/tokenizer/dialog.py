"""Dialogs to ids, in Meta's formats over SentencePiece: Llama 2's and Code Llama 70B's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

from llama_jax.tokenizer.messages import checked_messages, refuse_keys, refuse_tools
from llama_jax.tokenizer.protocol import Answers, Message, Tokenizer, Tools

LLAMA2_ROLES = ("system", "user", "assistant")
LLAMA2_TAGS = ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>")
STEP = "<step>"
"""The piece that ends a message of Code Llama 70B. A SentencePiece model that has it is that
model's: Meta's code tells the two formats apart by it."""


def encode_llama2(
    tokenizer: Tokenizer, messages: Sequence[Message], *, tools: Tools | None = None
) -> list[int]:
    """Llama 2's turns: a question and its answer between bos and eos, the last question open.

    Contents are stripped; a system message goes into the first question. The format's tags are
    text to the tokenizer, so a content that spells one is refused, as Meta refuses it.
    """
    refuse_tools(tools, "Llama 2's format")
    texts, _ = _llama2_texts(messages, last="user")
    ids = []
    for question, answer in zip(texts[:-1:2], texts[1::2], strict=True):
        ids += tokenizer.encode(f"[INST] {question} [/INST] {answer} ", bos=True, eos=True)
    return ids + tokenizer.encode(f"[INST] {texts[-1]} [/INST]", bos=True, eos=False)


def encode_llama2_answers(tokenizer: Tokenizer, messages: Sequence[Message]) -> Answers:
    """Llama 2's answered questions; of a pair the assistant wrote what follows [/INST], and eos."""
    texts, first = _llama2_texts(messages, last="assistant")
    ids: list[int] = []
    writers: list[int] = []
    for pair, (question, answer) in enumerate(zip(texts[::2], texts[1::2], strict=True)):
        index = first + 2 * pair
        read = tokenizer.encode(f"[INST] {question} [/INST]", bos=True, eos=False)
        whole = tokenizer.encode(f"[INST] {question} [/INST] {answer} ", bos=True, eos=True)
        if whole[: len(read)] != read:
            raise ValueError(
                f"message {index} begins within a token of the question's, so its tokens cannot "
                "be told apart; give it a text"
            )
        ids += whole
        writers += [-1] * len(read) + [index] * (len(whole) - len(read))
    return ids, writers


def _llama2_texts(messages: Sequence[Message], last: str) -> tuple[list[str], int]:
    """Question, answer, question, ..., and the index of the first answer's message.

    They are stripped, and the system message is in the first question.
    """
    checked = checked_messages(messages, LLAMA2_ROLES)
    _check_turns(checked, "Llama 2", ("role", "content"), LLAMA2_TAGS, last)
    texts, first = [message["content"] for message in checked], 1
    if checked[0]["role"] == "system":
        texts[:2], first = [f"<<SYS>>\n{texts[0]}\n<</SYS>>\n\n{texts[1]}"], 2
    return [text.strip() for text in texts], first


def encode_codellama70b(
    tokenizer: Tokenizer,
    step_id: int,
    messages: Sequence[Message],
    *,
    tools: Tools | None = None,
) -> list[int]:
    """Code Llama 70B's messages after one bos: a header, the content, `step_id`; the last open.

    A header names the message's source, and its destination where the key "destination" states
    one. A dialog without a system message begins with an empty one. Contents are stripped. <step>
    and Llama 2's tags are refused in a content, as Meta refuses them.
    """

    def text(text: str) -> list[int]:
        return tokenizer.encode(text, bos=False, eos=False)

    refuse_tools(tools, "Code Llama 70B's format")
    checked = checked_messages(messages, LLAMA2_ROLES)
    known = ("role", "content", "destination")
    _check_turns(checked, "Code Llama 70B", known, (*LLAMA2_TAGS, STEP))
    if checked[0]["role"] != "system":
        checked.insert(0, {"role": "system", "content": ""})
    ids = [tokenizer.bos_id]
    for message in checked:
        to = f"\nDestination: {message['destination'].strip()}" if "destination" in message else ""
        ids += text(f" Source: {message['role']}{to}")
        ids += text(f"\n\n {message['content'].strip()}") if message["content"] else []
        ids.append(step_id)
    return [*ids, *text(" Source: assistant\nDestination: user"), *text("\n\n ")]


def refuse_codellama70b_answers() -> NoReturn:
    """Raises ValueError: the model reads the space after a header, and then writes a text that,
    encoded as a past turn, begins with a token that has this space in it."""
    raise ValueError(
        "Code Llama 70B's format joins an answer's first token with the header before it, so the "
        "assistant's tokens cannot be told apart; write the dialogs as texts, or put a chat "
        "template with {% generation %} beside the tokenizer"
    )


def _check_turns(
    messages: Sequence[dict[str, Any]],
    model: str,
    keys: Sequence[str],
    tags: Sequence[str],
    last: str = "user",
) -> None:
    """Raises ValueError unless user and assistant alternate up to `last`, and no text has a tag."""
    begin = 1 if messages[0]["role"] == "system" else 0
    for index, message in enumerate(messages):
        refuse_keys(index, message, keys)
        for key in keys[1:]:
            value = message.get(key, "")
            if not isinstance(value, str):
                raise ValueError(f"message {index} has {key}={value!r}; it is a text")
            if spelled := [tag for tag in tags if tag in value]:
                raise ValueError(
                    f"message {index} has {spelled[0]} in its {key}, and {model}'s format could "
                    f"not tell it from its own; take it out of the {key}"
                )
        due = "system" if index < begin else ("user", "assistant")[(index - begin) % 2]
        if message["role"] != due:
            raise ValueError(
                f"message {index} has role {message['role']!r} where {due!r} is due; in {model}'s "
                "format user and assistant alternate after at most one system message"
            )
    if messages[-1]["role"] != last:
        way_out = {
            "user": f"{model} answers a user, so end with a user's message",
            "assistant": "end with the assistant's answer",
        }[last]
        raise ValueError(
            f"message {len(messages) - 1}, the last, has role {messages[-1]['role']!r}; {way_out}"
        )
