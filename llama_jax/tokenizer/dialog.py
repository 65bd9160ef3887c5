"""Dialogs to ids, in the formats of Meta's Llama 2 and Llama 3."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

from llama_jax.tokenizer.protocol import Answers, Message, Tokenizer, check_text

LLAMA2_ROLES = ("system", "user", "assistant")
LLAMA2_TAGS = ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>")
LLAMA3_ROLES = ("system", "user", "assistant", "tool", "ipython")
LLAMA3_ENDS = {"eot": "<|eot_id|>", "eom": "<|eom_id|>"}


def encode_llama2(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """Llama 2's turns: a question and its answer between bos and eos, the last question open.

    Contents are stripped; a system message goes into the first question. The format's tags are
    text to the tokenizer, so a content that spells one is refused, as Meta refuses it.
    """
    _check_llama2(messages, "user", "Llama 2 answers a user, so end with a user's message")
    *answered, last = _llama2_texts(messages)[::2]
    answers = _llama2_texts(messages)[1::2]
    ids = []
    for question, answer in zip(answered, answers, strict=True):
        ids += tokenizer.encode(f"[INST] {question} [/INST] {answer} ", bos=True, eos=True)
    return ids + tokenizer.encode(f"[INST] {last} [/INST]", bos=True, eos=False)


def encode_llama2_answers(tokenizer: Tokenizer, messages: Sequence[Message]) -> Answers:
    """Llama 2's answered questions; of a pair the assistant wrote what follows [/INST], and eos."""
    _check_llama2(messages, "assistant", "end with the assistant's answer")
    texts = _llama2_texts(messages)
    first = 2 if messages[0]["role"] == "system" else 1
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


def _llama2_texts(messages: Sequence[Message]) -> list[str]:
    """Question, answer, question, ...: stripped, the system message in the first question."""
    texts = [message["content"] for message in messages]
    if messages[0]["role"] == "system":
        texts[:2] = [f"<<SYS>>\n{texts[0]}\n<</SYS>>\n\n{texts[1]}"]
    return [text.strip() for text in texts]


def _check_llama2(messages: Sequence[Message], last: str, why: str) -> None:
    check_messages(messages, LLAMA2_ROLES)
    begin = 1 if messages[0]["role"] == "system" else 0
    for index, message in enumerate(messages):
        _refuse_keys(index, message, ("role", "content"))
        for tag in LLAMA2_TAGS:
            if tag in message["content"]:
                raise ValueError(
                    f"message {index} has {tag} in its content, and Llama 2's format could not "
                    "tell it from its own; take it out of the content"
                )
        due = "system" if index < begin else ("user", "assistant")[(index - begin) % 2]
        if message["role"] != due:
            raise ValueError(
                f"message {index} has role {message['role']!r} where {due!r} is due; in Llama 2's "
                "format user and assistant alternate after at most one system message"
            )
    if messages[-1]["role"] != last:
        raise ValueError(
            f"message {len(messages) - 1}, the last, has role {messages[-1]['role']!r}; {why}"
        )


def encode_llama3(
    tokenizer: Tokenizer, special: Mapping[str, int], messages: Sequence[Message]
) -> list[int]:
    """Llama 3's messages after one bos, each between its header and its end, and an open header.

    The role "tool" is written "ipython", as Meta writes it. Contents are not stripped. Llama 3.1
    knows two keys more, for the assistant alone: `"python_tag": True` writes <|python_tag|> before
    the content, a call of a built-in tool, and `"end": "eom"` ends it with <|eom_id|>: the
    assistant goes on once it has the tool's result.
    """
    pieces = _llama3_pieces(tokenizer, special, messages)
    return [id for piece, _ in pieces for id in piece] + _llama3_header(
        tokenizer, special, "assistant"
    )


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
    check_messages(messages, LLAMA3_ROLES)
    yield [tokenizer.bos_id], -1
    for index, message in enumerate(messages):
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
    _refuse_keys(index, message, ("role", "content", "python_tag", "end"))
    tagged, end = message.get("python_tag", False), message.get("end", "eot")
    if not isinstance(tagged, bool):
        raise ValueError(f"message {index} has python_tag={tagged!r}; it is True or False")
    if not isinstance(end, str) or end not in LLAMA3_ENDS:
        raise ValueError(f"message {index} has end={end!r}; it is one of {_listed(LLAMA3_ENDS)}")
    if message["role"] != "assistant" and (tagged or end != "eot"):
        key = "python_tag" if tagged else "end"
        raise ValueError(
            f"message {index} has role {message['role']!r} and {key}={message[key]!r}; only the "
            "assistant calls tools, so leave it out"
        )
    return tagged, LLAMA3_ENDS[end]


def check_messages(messages: Sequence[Message], roles: Collection[str]) -> None:
    """Raises ValueError unless `messages` are some, each with one of `roles` and a text.

    Calls of tools may stand in the text's place, in the formats that know the key "tool_calls".
    """
    example = '{"role": "user", "content": "Hello"}'
    if isinstance(messages, str | bytes) or not isinstance(messages, Sequence):
        raise ValueError(f"messages={messages!r:.60} is no list of messages; pass [{example}]")
    if not messages:
        raise ValueError(f"messages=[] is no dialog; pass at least one message, [{example}]")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise ValueError(f"message {index} is {message!r:.60}; a message is a dict, {example}")
        calls = message.get("tool_calls") and message.get("content") is None
        for key in ("role",) if calls else ("role", "content"):
            if key not in message:
                raise ValueError(
                    f"message {index} has no {key!r}, only {_listed(message)}; it needs both: "
                    f"{example}"
                )
            try:
                check_text(message[key])
            except ValueError as error:
                raise ValueError(f"message {index} has a broken {key!r}: {error}") from None
        if message["role"] not in roles:
            raise ValueError(
                f"message {index} has role {message['role']!r}; it is one of {_listed(roles)}"
            )


def _refuse_keys(index: int, message: Message, known: Collection[str]) -> None:
    if unknown := [key for key in message if key not in known]:
        raise ValueError(
            f"message {index} has {unknown[0]!r}, which this model's format does not write; it "
            f"knows {_listed(known)}, so leave it out or write it into the content"
        )


def _listed(names: Collection[object]) -> str:
    return ", ".join(map(repr, names)) or "nothing"
