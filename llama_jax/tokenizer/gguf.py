"""The tokenizer of a GGUF file: its metadata, as the files that the other kinds read.

A SentencePiece vocabulary becomes a tokenizer.model, a byte-level BPE a tokenizer.json; what they
leave unsaid, a tokenizer_config.json and a generation_config.json. So a conversion keeps it whole.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llama_jax.tokenizer.foreign import MAX_ERROR, in_words
from llama_jax.tokenizer.gguf_bpe import tokenizer_json
from llama_jax.tokenizer.gguf_header import UnreadTokenizer, read_header
from llama_jax.tokenizer.gguf_sentencepiece import tokenizer_model
from llama_jax.tokenizer.gguf_vocabulary import Vocabulary

_CONFIG, _GENERATION = "tokenizer_config.json", "generation_config.json"


@dataclasses.dataclass(frozen=True)
class MadeFiles:
    """A tokenizer's files that lie nowhere."""

    name: str
    """The tokenizer's own, among `contents`."""
    contents: Mapping[str, bytes]
    notes: tuple[str, ...]

    def objects(self) -> dict[str, dict[str, Any]]:
        """What the JSON files beside the tokenizer's own hold, by name."""
        return {name: json.loads(self.contents[name]) for name in (_CONFIG, _GENERATION)}


def gguf_tokenizer(path: Path) -> MadeFiles:
    """The files for the tokenizer in a GGUF file; ValueError names the file and what is wrong.

    An `UnreadTokenizer` where nothing is wrong, but its kind is not read.
    """
    metadata = read_header(path).metadata
    before = f"the tokenizer in {path}: "
    try:
        with in_words(before, limit=MAX_ERROR, but=(UnreadTokenizer,)):
            return _made(metadata)
    except UnreadTokenizer as error:
        raise UnreadTokenizer(f"{before}{error}") from None


def _made(metadata: Mapping[str, Any]) -> MadeFiles:
    said = Vocabulary.of(metadata)
    kind = metadata.get("tokenizer.ggml.model")
    notes: tuple[str, ...] = ()
    if kind == "llama":
        name, content = "tokenizer.model", tokenizer_model(said)
    elif kind == "gpt2":
        name = "tokenizer.json"
        content, notes = tokenizer_json(said, metadata.get("tokenizer.ggml.merges"))
    else:
        raise UnreadTokenizer(
            f"tokenizer.ggml.model is {kind!r:.80}, and llama (SentencePiece) and gpt2 (byte-level "
            "BPE) are read; put the model's tokenizer.json or tokenizer.model, and its "
            "tokenizer_config.json, into the folder that `llama-jax convert` writes"
        )
    written = {name: content, _CONFIG: _json(said.config), _GENERATION: _json(said.generation)}
    return MadeFiles(name, written, notes)


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
