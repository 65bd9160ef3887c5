"""A tokenizer of any kind as the metadata of a GGUF file."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from llama_jax.tokenizer.gguf_bpe import WORD_CUTS
from llama_jax.tokenizer.gguf_vocabulary import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED
from llama_jax.tokenizer.hf_decoder import BYTE_OF
from llama_jax.tokenizer.huggingface import HuggingFaceTokenizer
from llama_jax.tokenizer.protocol import Tokenizer
from llama_jax.tokenizer.sentencepiece import SentencePieceTokenizer
from llama_jax.tokenizer.tiktoken import TiktokenTokenizer

_NONE = {"tokenizer.ggml.model": "no_vocab"}
_CHARACTER = {byte: character for character, byte in BYTE_OF.items()}


def tokenizer_metadata(
    tokenizer: Tokenizer | None, vocab_size: int
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The keys and values, and notes. The vocabulary is filled up to the model's size.

    Without a tokenizer, or with one that llama.cpp has no name for, a file says that it has none.
    """
    if tokenizer is None:
        return dict(_NONE), ("no tokenizer: the file takes and gives token ids",)
    if isinstance(tokenizer, SentencePieceTokenizer):
        found = _of_sentencepiece(tokenizer)
    elif isinstance(tokenizer, TiktokenTokenizer):
        found = _of_tiktoken(tokenizer)
    elif isinstance(tokenizer, HuggingFaceTokenizer):
        found, why = _of_library(tokenizer)
        if why:
            return dict(_NONE), (f"no tokenizer is written: {why}",)
    else:
        return dict(_NONE), (f"no tokenizer is written: {type(tokenizer).__name__} is unknown",)
    if len(found["tokens"]) > vocab_size:
        return dict(_NONE), ("no tokenizer is written: it has more tokens than the model",)
    _fill(found, vocab_size)
    metadata = {f"tokenizer.ggml.{key}": value for key, value in found.items()}
    return {**metadata, **_ends(tokenizer), **_template(tokenizer)}, _notes(tokenizer)


def _of_sentencepiece(tokenizer: SentencePieceTokenizer) -> dict[str, Any]:
    model, added = tokenizer.model, tokenizer._added.by_id
    tokens = [model.id_to_piece(id) for id in range(model.vocab_size())]
    kinds = [_piece_kind(model, id) for id in range(len(tokens))]
    scores = [model.get_score(id) for id in range(len(tokens))]
    for id in range(len(tokens), tokenizer.vocab_size):
        token = added.get(id)
        tokens.append(f"[PAD{id}]" if token is None else token.text)
        kinds.append(UNUSED if token is None else CONTROL if token.special else USER_DEFINED)
        scores.append(-1000.0)
    for id, token in added.items():
        kinds[id] = CONTROL if token.special else USER_DEFINED
    return {
        "model": "llama",
        "tokens": tokens,
        "scores": np.array(scores, np.float32),
        "token_type": np.array(kinds, np.int32),
        "add_space_prefix": model.encode("a") != tokenizer._unprefixed.encode("a"),
    }


def _piece_kind(model: Any, id: int) -> int:
    for is_kind, kind in (
        (model.is_unknown, UNKNOWN),
        (model.is_control, CONTROL),
        (model.is_byte, BYTE),
        (model.is_unused, UNUSED),
    ):
        if is_kind(id):
            return kind
    return NORMAL


def _of_tiktoken(tokenizer: TiktokenTokenizer) -> dict[str, Any]:
    """Llama 3's ranks as merges: every cut of a token into two, the earliest tokens first."""
    ranks = {token: id for id, token in enumerate(tokenizer._bytes) if token}
    spelled = {token: "".join(map(_CHARACTER.__getitem__, token)) for token in ranks}
    merges = []
    for token in ranks:
        cuts = [(token[:at], token[at:]) for at in range(1, len(token))]
        pairs = [(ranks[a], ranks[b], a, b) for a, b in cuts if a in ranks and b in ranks]
        merges += [f"{spelled[a]} {spelled[b]}" for _, _, a, b in sorted(pairs)]
    names = {id: name for name, id in tokenizer.special.items()}
    added = tokenizer._added.by_id
    tokens, kinds = list(spelled.values()), [NORMAL] * len(ranks)
    for id in range(len(ranks), tokenizer.vocab_size):
        plain = added[id].text if id in added else f"[PAD{id}]"
        tokens.append(names.get(id, plain))
        kinds.append(CONTROL if id in names else USER_DEFINED if id in added else UNUSED)
    kinds_of = np.array(kinds, np.int32)
    return _bpe("llama-bpe", tokens, kinds_of, merges)


def _of_library(tokenizer: HuggingFaceTokenizer) -> tuple[dict[str, Any], str]:
    """A tokenizer.json's, or why it has none in a GGUF file."""
    said = json.loads(tokenizer._file)
    model, cut = said["model"], _plain(said.get("pre_tokenizer"))
    pre = next((name for name, one in WORD_CUTS.items() if _plain(one) == cut), None)
    if model.get("type") != "BPE" or pre is None or said.get("normalizer"):
        return {}, "it is not one of the byte-level BPEs that llama.cpp has a name for"
    library = tokenizer._controls_too
    added = library.get_added_tokens_decoder()
    fillers = {token.id for token in tokenizer._joined} - {t.id for t in tokenizer._stated.added}
    text_of = {id: text for text, id in library.get_vocab(with_added_tokens=True).items()}
    tokens, kinds = [], []
    for id in range(tokenizer.vocab_size):
        known = id in text_of and id not in fillers
        tokens.append(text_of[id] if known else f"[PAD{id}]")
        control = id in tokenizer._control_ids
        other = USER_DEFINED if id in added else NORMAL
        kinds.append(UNUSED if not known else CONTROL if control else other)
    merges = [one if isinstance(one, str) else " ".join(one) for one in model["merges"]]
    return _bpe(pre, tokens, np.array(kinds, np.int32), merges), ""


def _plain(value: Any) -> Any:
    """A cutter of words without what only counts the places of characters."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items() if key != "trim_offsets"}
    return [_plain(one) for one in value] if isinstance(value, list) else value


def _bpe(pre: str, tokens: list[str], kinds: np.ndarray, merges: list[str]) -> dict[str, Any]:
    said = {"model": "gpt2", "pre": pre, "tokens": tokens}
    return {**said, "token_type": kinds, "merges": merges}


def _fill(found: dict[str, Any], size: int) -> None:
    """Adds tokens that no text has, up to the model's size."""
    more = size - len(found["tokens"])
    found["tokens"] = found["tokens"] + [f"[PAD{size - more + n}]" for n in range(more)]
    found["token_type"] = np.append(found["token_type"], np.full(more, UNUSED, np.int32))
    if "scores" in found:
        found["scores"] = np.append(found["scores"], np.full(more, -1000, np.float32))


def _ends(tokenizer: Tokenizer) -> dict[str, Any]:
    """Bos, eos, and the two other ends of an answer that a file has keys for."""
    names = {id: name for name, id in tokenizer.special.items()}
    others = [id for id in tokenizer.stop_ids if id != tokenizer.eos_id]
    messages = [id for id in others if "eom" in names.get(id, "")]
    turns = [id for id in others if id not in messages]
    found = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id}
    found |= {"eot": turns[0]} if turns else {}
    found |= {"eom": messages[0]} if messages else {}
    adds = tokenizer.encode("", bos=True, eos=False) == [tokenizer.bos_id]
    ids = {f"tokenizer.ggml.{name}_token_id": id for name, id in found.items()}
    return {**ids, "tokenizer.ggml.add_bos_token": adds}


def _template(tokenizer: Any) -> dict[str, str]:
    template, key = tokenizer._template, "tokenizer.chat_template"
    if template is None:
        return {}
    tools = {} if template.tool_source is None else {f"{key}.tool_use": template.tool_source}
    return {key: template.source, **tools}


def _notes(tokenizer: Tokenizer) -> tuple[str, ...]:
    if isinstance(tokenizer, SentencePieceTokenizer):
        model = tokenizer.model
        if model.encode("a  a") == model.encode("a a"):
            return ("the tokenizer takes runs of spaces for one, which a GGUF file cannot say",)
    return ()
