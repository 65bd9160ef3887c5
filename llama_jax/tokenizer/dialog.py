"""Dialogs to ids, in Meta's own formats: Llama 2's, Code Llama 70B's and Llama 3's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

from llama_jax.tokenizer.messages import checked_messages, listed, refuse_keys, refuse_tools
from llama_jax.tokenizer.protocol import Answers, Message, Tokenizer, Tools

LLAMA2_ROLES = ("system", "user", "assistant")
LLAMA2_TAGS = ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>")
STEP = "<step>"
"""The piece that ends a message of Code Llama 70B. A SentencePiece model that has it is that
model's: Meta's code tells the two formats apart by it."""
LLAMA3_ROLES = ("system", "user", "assistant", "tool", "ipython")
LLAMA3_ENDS = {"eot": "<|eot_id|>", "eom": "<|eom_id|>"}


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


def encode_llama3(
    tokenizer: Tokenizer,
    special: Mapping[str, int],
    messages: Sequence[Message],
    *,
    tools: Tools | None = None,
) -> list[int]:
    """Llama 3's messages after one bos, each between its header and its end, and an open header.

    The role "tool" is written "ipython", as Meta writes it. Contents are not stripped. Llama 3.1
    knows two keys more, for the assistant alone: `"python_tag": True` writes <|python_tag|> before
    the content, a call of a built-in tool, and `"end": "eom"` ends it with <|eom_id|>: the
    assistant goes on once it has the tool's result. Meta describes tools in the system or the first
    user message, so `tools` are refused.
    """
    refuse_tools(tools, "Llama 3's format")
    pieces = _llama3_pieces(tokenizer, special, messages)
    header = _llama3_header(tokenizer, special, "assistant")
    return [id for piece, _ in pieces for id in piece] + header


def encode_llama3_answers(
    tokenizer: Tokenizer, special: Mapping[str, int], messages: Sequence[Message]
) -> Answers:
    """Llama 3's messages; the assistant wrote its contents and what ends them, not its headers."""
    ids: list[int] = []
    writers: list[int] = []
    for piece, writer in _llama3_pieces(tokenizer, special, messages):
        ids += piece
        writers += [writer] * len(piece)
    return ids, writers


def _llama3_pieces(
    tokenizer: Tokenizer, special: Mapping[str, int], messages: Sequence[Message]
) -> Iterator[tuple[list[int], int]]:
    """Runs of tokens, each with the index of the assistant's message that it is of, or -1."""
    yield [tokenizer.bos_id], -1
    for index, message in enumerate(checked_messages(messages, LLAMA3_ROLES)):
        tagged, end = _llama3_marks(index, message)
        yield _llama3_header(tokenizer, special, message["role"]), -1
        tag = [special["<|python_tag|>"]] if tagged else []
        text = tokenizer.encode(message["content"], bos=False, eos=False)
        yield [*tag, *text, special[end]], index if message["role"] == "assistant" else -1


def _llama3_header(tokenizer: Tokenizer, special: Mapping[str, int], role: str) -> list[int]:
    name, blank = (
        tokenizer.encode(text, bos=False, eos=False)
        for text in ("ipython" if role == "tool" else role, "\n\n")
    )
    return [special["<|start_header_id|>"], *name, special["<|end_header_id|>"], *blank]


def _llama3_marks(index: int, message: Message) -> tuple[bool, str]:
    """Whether <|python_tag|> begins a message, and the token that ends it."""
    refuse_keys(index, message, ("role", "content", "python_tag", "end"))
    tagged, end = message.get("python_tag", False), message.get("end", "eot")
    if not isinstance(tagged, bool):
        raise ValueError(f"message {index} has python_tag={tagged!r}; it is True or False")
    if not isinstance(end, str) or end not in LLAMA3_ENDS:
        raise ValueError(f"message {index} has end={end!r}; it is one of {listed(LLAMA3_ENDS)}")
    if message["role"] != "assistant" and (tagged or end != "eot"):
        key = "python_tag" if tagged else "end"
        raise ValueError(
            f"message {index} has role {message['role']!r} and {key}={message[key]!r}; only the "
            "assistant calls tools, so leave it out"
        )
    return tagged, LLAMA3_ENDS[end]
