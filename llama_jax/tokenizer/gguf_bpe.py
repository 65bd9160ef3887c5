"""A byte-level BPE vocabulary of a GGUF file as Hugging Face's tokenizer.json."""

from __future__ import annotations

import json
from typing import Any

from llama_jax.tokenizer.gguf_header import UnreadTokenizer
from llama_jax.tokenizer.gguf_vocabulary import CONTROL, UNKNOWN, USER_DEFINED, Vocabulary
from llama_jax.tokenizer.tiktoken import WORDS

_ADDED = frozenset((UNKNOWN, CONTROL, USER_DEFINED))
_GPT2 = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_BYTES_ONLY = {**_GPT2, "use_regex": False}
_LLAMA3 = {
    "type": "Sequence",
    "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": WORDS}, "behavior": "Isolated", "invert": False},
        _BYTES_ONLY,
    ],
}
_SINGLE_DIGITS = {
    "type": "Sequence",
    "pretokenizers": [{"type": "Digits", "individual_digits": True}, _GPT2],
}
WORD_CUTS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3"), _LLAMA3),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r"), _SINGLE_DIGITS),
    **dict.fromkeys(("gpt-2", "default"), _GPT2),
}
"""How a text is cut into words before merges, by llama.cpp's names."""


def tokenizer_json(said: Vocabulary, merges: Any) -> tuple[bytes, tuple[str, ...]]:
    """The file, and notes for a person."""
    if said.pre not in WORD_CUTS:
        raise UnreadTokenizer(
            f"tokenizer.ggml.pre is {said.pre!r:.80}, and {', '.join(WORD_CUTS)} are read; put the "
            "model's tokenizer.json and tokenizer_config.json into the folder that `llama-jax "
            "convert` writes"
        )
    if not isinstance(merges, list):
        raise ValueError("tokenizer.ggml.merges is no list of merges; the file has none")
    found = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added(said),
        "normalizer": None,
        "pre_tokenizer": WORD_CUTS[said.pre],
        "post_processor": _post_processor(said),
        "decoder": _GPT2,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": WORD_CUTS[said.pre] is _LLAMA3,
            "vocab": _vocab(said),
            "merges": merges,
        },
    }
    return json.dumps(found, ensure_ascii=False).encode(), _notes(said.pre)


def _notes(pre: str) -> tuple[str, ...]:
    if pre != "default":
        return ()
    return (
        "the file does not say how its tokenizer cuts a text into words (tokenizer.ggml.pre is "
        'missing or "default"): it is taken for GPT-2\'s',
    )


def _vocab(said: Vocabulary) -> dict[str, int]:
    """All tokens but those added after the last ordinary one, so that no text becomes them."""
    backwards = range(len(said.kinds), 0, -1)
    end = next((end for end in backwards if said.kinds[end - 1] not in _ADDED), 0)
    return {text: id for id, text in enumerate(said.tokens[:end])}


def _added(said: Vocabulary) -> list[dict[str, Any]]:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return [
        {"id": id, "content": said.tokens[id], **plain, "special": kind != USER_DEFINED}
        for id, kind in enumerate(said.kinds)
        if kind in _ADDED
    ]


def _post_processor(said: Vocabulary) -> dict[str, Any] | None:
    """What transformers puts a bos before a text by."""
    if not said.adds_bos or said.bos is None:
        return None
    bos = said.tokens[said.bos]
    first = {"SpecialToken": {"id": bos, "type_id": 0}}
    texts = [{"Sequence": {"id": name, "type_id": n}} for n, name in enumerate("AB")]
    return {
        "type": "TemplateProcessing",
        "single": [first, texts[0]],
        "pair": [first, texts[0], {"SpecialToken": {"id": bos, "type_id": 1}}, texts[1]],
        "special_tokens": {bos: {"id": bos, "ids": [said.bos], "tokens": [bos]}},
    }
