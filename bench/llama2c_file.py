"""A native checkpoint as the two files that llama2.c's `run` reads: weights and a tokenizer."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np

from llama_jax.checkpoint.blocks import transposed
from llama_jax.checkpoint.reading import open_checkpoint
from llama_jax.config import Config

BOS, SPACE = 1, 2
"""`run` begins every text with the one, and puts the other before a prompt."""
_FIRST = 0x10000
_LAYERED = [
    ("attention_norm", "scale"),
    ("attention", "wq"),
    ("attention", "wk"),
    ("attention", "wv"),
    ("attention", "wo"),
    ("ffn_norm", "scale"),
    ("feed_forward", "w1"),
    ("feed_forward", "w2"),
    ("feed_forward", "w3"),
]


def unsupported(config: Config, dtype: str) -> str | None:
    """Why llama2.c cannot run this model, or None where it can."""
    c = config
    if dtype != "float32":
        return f"it computes in float32, and this run in {dtype}"
    if c.attention_bias or c.mlp_bias or c.rope_scaling is not None:
        return "it knows neither biases nor RoPE scaling"
    if c.head_dim * c.n_heads != c.dim or c.rope_theta != 10000 or c.norm_eps != 1e-5:
        return "its head size, RoPE base and norm's epsilon are fixed to others"
    return None


def write_llama2c(checkpoint: Path, destination: Path) -> None:
    """Writes `model.bin` and `tokenizer.bin` into a folder.

    Weights are stored by kind, all layers of one together; `run` tells an untied output by a
    negative vocabulary, and expects the tables of angles that it once read before it.
    """
    source = open_checkpoint(checkpoint)
    c, tensors = source.config, source.tensors
    destination.mkdir(exist_ok=True)
    vocab = c.vocab_size if c.tie_embeddings else -c.vocab_size
    sizes = c.dim, c.hidden_dim, c.n_layers, c.n_heads, c.n_kv_heads, vocab, c.max_seq_len
    with open(destination / "model.bin", "wb") as file:
        file.write(struct.pack("<7i", *sizes))
        _write(file, tensors["tok_embeddings", "weight"][...])
        for kind in _LAYERED:
            for layer in range(c.n_layers):
                weight = tensors[(f"layers_{layer}", *kind)][...]
                _write(file, weight if weight.ndim == 1 else transposed(weight))
        _write(file, tensors["norm", "scale"][...])
        _write(file, np.zeros((2, c.max_seq_len, c.head_dim // 2)))
        if not c.tie_embeddings:
            _write(file, transposed(tensors["output", "weight"][...]))
    with open(destination / "tokenizer.bin", "wb") as file:
        file.write(struct.pack("<i", 4))
        for token in range(c.vocab_size):
            piece = spelled([token]).encode()
            file.write(struct.pack("<fi", 0.0, len(piece)) + piece)


def spelled(tokens: list[int]) -> str:
    """Ids as a text of one character each, which `run` turns back into those ids."""
    return "".join(" " if token == SPACE else chr(_FIRST + token) for token in tokens)


def ids_of(text: str) -> list[int]:
    """The ids that `spelled` spelled."""
    return [SPACE if character == " " else ord(character) - _FIRST for character in text]


def _write(file: BinaryIO, array: np.ndarray) -> None:
    file.write(np.ascontiguousarray(array, np.float32).tobytes())
