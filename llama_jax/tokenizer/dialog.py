"""Dialogs to ids, in Meta's own formats: Llama 2's, Code Llama 70B's and Llama 3's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llama_jax.tokenizer.messages import checked_messages, listed, refuse_keys, refuse_tools
from llama_jax.tokenizer.protocol import Message, Tokenizer, Tools

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
    checked = checked_messages(messages, LLAMA2_ROLES)
    _check_turns(checked, "Llama 2", ("role", "content"), LLAMA2_TAGS)
    texts = [message["content"] for message in checked]
    if checked[0]["role"] == "system":
        texts[:2] = [f"<<SYS>>\n{texts[0]}\n<</SYS>>\n\n{texts[1]}"]
    *answered, last = [text.strip() for text in texts[::2]]
    answers = [text.strip() for text in texts[1::2]]
    ids = []
    for question, answer in zip(answered, answers, strict=True):
        ids += tokenizer.encode(f"[INST] {question} [/INST] {answer} ", bos=True, eos=True)
    return ids + tokenizer.encode(f"[INST] {last} [/INST]", bos=True, eos=False)


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


def _check_turns(
    messages: Sequence[dict[str, Any]], model: str, keys: Sequence[str], tags: Sequence[str]
) -> None:
    """Raises ValueError unless user and assistant alternate, and no content spells a tag."""
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
    if messages[-1]["role"] != "user":
        raise ValueError(
            f"message {len(messages) - 1}, the last, has role {messages[-1]['role']!r}; {model} "
            "answers a user, so end with a user's message"
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

    def text(text: str) -> list[int]:
        return tokenizer.encode(text, bos=False, eos=False)

    def header(role: str) -> list[int]:
        name = text("ipython" if role == "tool" else role)
        begin, end = special["<|start_header_id|>"], special["<|end_header_id|>"]
        return [begin, *name, end, *text("\n\n")]

    ids = [tokenizer.bos_id]
    for index, message in enumerate(checked_messages(messages, LLAMA3_ROLES)):
        tagged, end = _llama3_marks(index, message)
        ids += header(message["role"])
        ids += [special["<|python_tag|>"]] if tagged else []
        ids += [*text(message["content"]), special[end]]
    return ids + header("assistant")


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
