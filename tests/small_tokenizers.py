"""Small tokenizers made here, and the real ones beside a developer's clone."""

from __future__ import annotations

import base64
import functools
import io
import json

import pytest
import sentencepiece
from helpers import SHARED

from llama_jax.tokenizer import load_tokenizer
from llama_jax.tokenizer.sentencepiece import SentencePieceTokenizer
from llama_jax.tokenizer.tiktoken import TiktokenTokenizer

needs_shared = pytest.mark.skipif(
    not SHARED.is_dir(), reason=f"the real tokenizers and their reference ids are not at {SHARED}"
)


FILES = {
    "llama2": SHARED / "tokenizers/llama2/tokenizer.model",
    "llama3": SHARED / "tokenizers/llama3/tokenizer.model",
    "stories260K": SHARED / "models/stories260K-meta/tokenizer.model",
}


# As LLaMA's; without a leading space of its own; joining runs of spaces, as stories260K's does.
SENTENCEPIECES = {
    "tiny-sentencepiece": {},
    "tiny-no-prefix": {"add_dummy_prefix": False},
    "tiny-joining": {"remove_extra_whitespaces": True},
}


@functools.cache
def sentencepiece_file(name="tiny-sentencepiece"):
    """A SentencePiece model made as Meta made LLaMA's, only of a few sentences."""
    written = io.BytesIO()
    options = {"remove_extra_whitespaces": False, **SENTENCEPIECES[name]}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["Once upon a time there was a llama", "the llama was there"] * 20),
        model_writer=written,
        model_type="bpe",
        vocab_size=256 + 3 + 45,
        byte_fallback=True,
        normalization_rule_name="identity",
        minloglevel=2,
        **options,
    )
    return written.getvalue()


def tiktoken_file(merges=(b" t", b"he", b" the", b"ll", b"am", b"\xf0\x9f")):
    tokens = [*(bytes([byte]) for byte in range(256)), *merges]
    lines = (b"%s %d\n" % (base64.b64encode(token), rank) for rank, token in enumerate(tokens))
    return b"".join(lines)


@functools.cache
def tokenizer_of(name):
    if name == "tiny-tiktoken":
        return TiktokenTokenizer(tiktoken_file())
    if name in SENTENCEPIECES:
        return SentencePieceTokenizer(sentencepiece_file(name))
    return load_tokenizer(FILES[name])


def references():
    return json.loads((SHARED / "reference" / "tokenizers.json").read_text())
