"""The vocabulary that a GGUF file states: its tokens, what each is for, and the chat templates."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from llama_jax.tokenizer.added import check_vocabulary

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""Kinds of token; SentencePiece's numbers."""


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The tokens of a GGUF file and what they are for."""

    tokens: list[str]
    kinds: list[int]
    """The kind of each token: one of the numbers above."""
    scores: np.ndarray
    pre: str | None
    """How a text is cut into words before merges, by llama.cpp's name for it."""
    bos: int | None
    eos: int
    stops: tuple[int, ...]
    adds_bos: bool
    adds_space: bool
    """Whether a space is put before a text."""
    templates: Mapping[str, str]

    @classmethod
    def of(cls, metadata: Mapping[str, Any]) -> Vocabulary:
        """Checked: as many kinds and scores as tokens, and ids of tokens that there are."""
        tokens = metadata.get("tokenizer.ggml.tokens")
        if not isinstance(tokens, list) or not tokens:
            raise ValueError("tokenizer.ggml.tokens is no list of tokens; the file has none")
        merges = metadata.get("tokenizer.ggml.merges")
        check_vocabulary(len(tokens), len(merges) if isinstance(merges, list) else 0)
        if len(set(tokens)) < len(tokens):
            raise ValueError("tokenizer.ggml.tokens has a token twice; the file is damaged")
        ids = {name: _id(metadata, name, len(tokens)) for name in ("bos", "eos", "eot", "eom")}
        ends = (ids[name] for name in ("eos", "eot", "eom"))
        stops = tuple(dict.fromkeys(id for id in ends if id is not None))
        if not stops:
            raise ValueError("tokenizer.ggml.eos_token_id names no token; a LLaMA has one")
        llama3 = pre_of(metadata) in ("llama-bpe", "llama3", "llama-v3")
        said = cls(
            tokens=tokens,
            kinds=_numbers(metadata, "token_type", len(tokens), NORMAL).astype(int).tolist(),
            scores=_numbers(metadata, "scores", len(tokens), 0).astype(np.float32),
            pre=pre_of(metadata),
            bos=ids["bos"],
            eos=stops[0],
            stops=stops,
            adds_bos=_flag(
                metadata, "add_bos_token", llama3 or metadata.get("tokenizer.ggml.model") == "llama"
            ),
            adds_space=_flag(metadata, "add_space_prefix", True),
            templates=dict(_templates(metadata)),
        )
        return said._with_controls()

    def _with_controls(self) -> Vocabulary:
        """Called control tokens too: what ends a text, and what the template writes by name."""
        source, kinds = self.templates.get("default", ""), list(self.kinds)
        for id, kind in enumerate(kinds):
            if kind == USER_DEFINED and self.tokens[id] and self.tokens[id] in source:
                kinds[id] = CONTROL
        for end in (self.bos, *self.stops):
            if end is not None and kinds[end] in (NORMAL, USER_DEFINED):
                kinds[end] = CONTROL
        return dataclasses.replace(self, kinds=kinds)

    @functools.cached_property
    def config(self) -> dict[str, Any]:
        """tokenizer_config.json."""
        sentencepiece = self.pre is None
        named = {"bos_token": None if self.bos is None else self.tokens[self.bos]}
        named["eos_token"] = self.tokens[self.eos]
        unknown = [self.tokens[id] for id, kind in enumerate(self.kinds) if kind == UNKNOWN]
        if unknown and sentencepiece:
            named["unk_token"] = unknown[0]
        found: dict[str, Any] = {
            "tokenizer_class": "LlamaTokenizer" if sentencepiece else "PreTrainedTokenizerFast",
            **{name: text for name, text in named.items() if text is not None},
            "add_bos_token": self.adds_bos and self.bos is not None,
            "add_eos_token": False,
        }
        if len(self.templates) > 1:
            found["chat_template"] = [
                {"name": name, "template": text} for name, text in self.templates.items()
            ]
        elif self.templates:
            found["chat_template"] = self.templates["default"]
        return found

    @property
    def generation(self) -> dict[str, Any]:
        """generation_config.json."""
        begin = {} if self.bos is None else {"bos_token_id": self.bos}
        return {**begin, "eos_token_id": list(self.stops)}


def pre_of(metadata: Mapping[str, Any]) -> str | None:
    """llama.cpp's name of how a text is cut into words; None of a SentencePiece vocabulary.

    Files from before May 2024 lack it: Llama 3's have its number of tokens.
    """
    if metadata.get("tokenizer.ggml.model") != "gpt2":
        return None
    pre = metadata.get("tokenizer.ggml.pre")
    if pre is None:
        llama3 = len(metadata.get("tokenizer.ggml.tokens", ())) == 128_256
        return "llama-bpe" if llama3 else "default"
    return pre if isinstance(pre, str) else repr(pre)[:80]


def _id(metadata: Mapping[str, Any], name: str, size: int) -> int | None:
    key = f"tokenizer.ggml.{name}_token_id"
    id = metadata.get(key)
    if id is None or id in (-1, 2**32 - 1):
        return None
    if type(id) is not int or not 0 <= id < size:
        raise ValueError(f"{key}={id!r:.80} must be an id of its {size:,} tokens")
    return id


def _numbers(metadata: Mapping[str, Any], name: str, size: int, default: int) -> np.ndarray:
    key = f"tokenizer.ggml.{name}"
    found = metadata.get(key)
    if found is None:
        return np.full(size, default)
    if not isinstance(found, np.ndarray) or found.shape != (size,):
        raise ValueError(f"{key} must have a number for each of its {size:,} tokens")
    return found


def _flag(metadata: Mapping[str, Any], name: str, default: bool) -> bool:
    key = f"tokenizer.ggml.{name}"
    found = metadata.get(key, default)
    if not isinstance(found, bool):
        raise ValueError(f"{key}={found!r:.80} must be true or false")
    return found


def _templates(metadata: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The chat templates: the default one, and that for dialogs with tools."""
    key = "tokenizer.chat_template"
    for name, each in (("default", key), ("tool_use", f"{key}.tool_use")):
        text = metadata.get(each)
        if text is not None and (name == "default" or key in metadata):
            if not isinstance(text, str):
                raise ValueError(f"{each} is a {type(text).__name__} and must be a text")
            yield name, text
