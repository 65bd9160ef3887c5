"""Prompts to ids: text encoded by the model's tokenizer, ids checked."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeGuard

from llama_jax.config import Config
from llama_jax.tokenizer import Message, Tokenizer, Tools, shared_tokenizer
from llama_jax.validation import wrong_kind
from llama_jax.weights.params import Params, check_params

Prompt = str | Sequence[int] | Sequence[Message]
"""A text, a list of token ids, or a dialog that ends with its user."""


def encode(
    config: Config,
    prompt: Prompt,
    index: int,
    tokenizer: Tokenizer | None,
    truncate: bool = False,
    tools: Tools | None = None,
) -> list[int]:
    """A prompt's ids, every one of them the model's; text gets bos before it."""
    dialog = is_dialog(prompt)
    if tools and not dialog:
        raise ValueError(
            f"prompt {index} is no dialog, and tools= are told in one; pass it as "
            '[{"role": "user", "content": ...}], or leave tools= out'
        )
    if dialog or isinstance(prompt, str):
        if tokenizer is None:
            raise ValueError(
                f"prompt {index} is {'a dialog' if dialog else 'text'} and these params have no "
                "tokenizer; pass lists of ids, or tokenizer=llama_jax.load_tokenizer(path)"
            )
        prompt = _encoded(tokenizer, prompt, tools)
    ids = checked_ids(config, prompt, index)  # type: ignore[arg-type]
    if len(ids) > config.max_seq_len:
        if dialog:  # a cut would take away the format that the model was trained on
            raise ValueError(
                f"prompt {index} is a dialog of {len(ids)} tokens and the context ends at "
                f"max_seq_len={config.max_seq_len}; shorten its messages"
            )
        if not truncate:
            raise ValueError(
                f"prompt {index} has {len(ids)} tokens and the context ends at "
                f"max_seq_len={config.max_seq_len}; shorten the prompt, or pass truncate=True"
            )
        room = config.max_seq_len - 1  # and one place for a new token
        if not room:
            raise ValueError(
                f"prompt {index} cannot be cut to a context of max_seq_len=1, which has no room "
                "for a token before a new one; use a model with a longer one"
            )
        # From the left, and bos stays: a model that never saw a text without it writes poorly.
        kept = ids[-room:]
        bos = tokenizer is not None and ids[0] == tokenizer.bos_id
        ids = [ids[0], *kept[1:]] if bos else kept
    return ids


def listed(name: str, prompts: Any) -> list[Any]:
    """The prompts of a call, of which one alone is no list."""
    if isinstance(prompts, str):
        raise ValueError(f"{name}={prompts[:40]!r} is one text; pass a list: [text]")
    if isinstance(prompts, bytes | Mapping) or not isinstance(prompts, Iterable):
        raise wrong_kind(name, prompts, "pass a list of prompts, such as ['Once upon a time']")
    return list(prompts)


def is_dialog(prompt: Any) -> TypeGuard[Sequence[Message]]:
    """Whether a prompt is a list of messages."""
    return isinstance(prompt, Sequence) and bool(prompt) and isinstance(prompt[0], Mapping)


def encode_dialog(
    tokenizer: Tokenizer, messages: Sequence[Message], tools: Tools | None
) -> list[int]:
    """A dialog's ids; a tokenizer of the user's own need not know of tools."""
    if tools is None:
        return tokenizer.encode_dialog(messages)
    return tokenizer.encode_dialog(messages, tools=tools)


def _encoded(tokenizer: Tokenizer, prompt: Any, tools: Tools | None) -> list[int]:
    if isinstance(prompt, str):
        return tokenizer.encode(prompt, bos=True, eos=False)
    return encode_dialog(tokenizer, prompt, tools)


def checked_ids(config: Config, prompt: Sequence[int], index: int) -> list[int]:
    """A prompt's ids, at least one and all of them the model's, however many they are."""
    try:
        if isinstance(prompt, bytes) or any(isinstance(id, bool) for id in prompt):
            raise TypeError
        ids = [operator.index(id) for id in prompt]
    except TypeError:
        alone = hasattr(prompt, "__index__") or isinstance(prompt, Mapping)
        raise ValueError(
            f"prompt {index} is {prompt!r}; a prompt is a string or a list of token ids"
            f"{'; of one alone pass a list: [prompt]' * alone}"
        ) from None
    if not ids:
        raise ValueError(f"prompt {index} has no tokens; begin it with bos, or pass text")
    if wrong := [id for id in ids if not 0 <= id < config.vocab_size]:
        raise ValueError(
            f"prompt {index} has token {wrong[0]}, and the model knows 0 to {config.vocab_size - 1}"
            "; is this tokenizer another model's?"
        )
    return ids


def tokenizer_of(params: Params, tokenizer: Tokenizer | None = None) -> Tokenizer | None:
    """The tokenizer given, or the checkpoint's, or None where it has none."""
    check_params(params)
    if tokenizer is not None and not hasattr(tokenizer, "token_bytes"):
        raise wrong_kind("tokenizer", tokenizer, "pass what llama_jax.load_tokenizer(path) returns")
    if tokenizer is None and params.tokenizer is not None:
        return shared_tokenizer(params.tokenizer)
    return tokenizer
