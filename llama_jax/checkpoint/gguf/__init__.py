"""GGUF files, as llama.cpp, Ollama and LM Studio have them: one, or a set that a model is cut into.

The rows of q and k lie in Meta's pair order there, which is ours.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llama_jax.checkpoint.blocks import Stored
from llama_jax.checkpoint.files.messages import FETCH_AGAIN, LFS_POINTER, listed, shorten
from llama_jax.checkpoint.gguf.config import read_config
from llama_jax.checkpoint.gguf.repack import RepackedTensor
from llama_jax.checkpoint.gguf.tensors import QuantizedTensor, RawTensor, read_tensors
from llama_jax.checkpoint.gguf.types import F32
from llama_jax.checkpoint.names import WeightNames, names_table
from llama_jax.checkpoint.source import Source, StoredTensor
from llama_jax.config import Config
from llama_jax.tokenizer.folder import is_there
from llama_jax.tokenizer.gguf_header import SET, read_header

_EMBEDDING, _FREQS = "token_embd.weight", "rope_freqs.weight"
# What the oldest files store beside the weights; the model computes its own.
_BUFFER = re.compile(r"(rope_freqs|blk\.[0-9]+\.attn_rot_embd)\.weight")


def open_gguf(path: Path, *, max_seq_len: int | None = None) -> Source:
    """Opens a GGUF file, or the set that it is one of, every name, shape and type in it checked.

    No weight is read. `max_seq_len` stands in for the file's `context_length`.
    """
    files = _files(path)
    headers = [read_header(file) for file in files]
    metadata = headers[0].metadata
    tensors: dict[str, RawTensor] = {}
    _check_set(files, metadata)
    for file, header in zip(files, headers, strict=True):
        for name, tensor in read_tensors(file, header).items():
            if name in tensors:
                raise ValueError(f"{file} has {shorten(name)}, and {tensors[name].file} too")
            tensors[name] = tensor
    try:
        config, notes, warnings = _config(metadata, tensors, max_seq_len)
        biases = _zero_biases(tensors, config)
        _check_names(tensors, config)
        found = {row.path: _stored(tensors, row) for row in names_table(config)}
    except ValueError as error:
        raise ValueError(f"{files[0]}: {error}") from error
    tokenizer = files[0] if "tokenizer.ggml.tokens" in metadata else None
    notes = (*notes, *biases)
    return Source(path, "gguf", config, found, tokenizer, tuple(files), notes, warnings)


def _files(path: Path) -> list[Path]:
    """The file, or all of the set that it is one of, by the numbers in their names."""
    if path.is_file() and path.stat().st_size < 1024:
        start, what = LFS_POINTER
        if path.read_bytes().startswith(start):
            raise ValueError(f"{path} {what}")
    if not (parts := SET.fullmatch(path.name)):
        return [path]
    head, _, rest = parts.groups()
    count = int(rest[:5])
    if not 1 <= count <= 1000:
        raise ValueError(f"{path} is one of {count} files by its name; {FETCH_AGAIN}")
    files = [path.with_name(f"{head}-{n:05}-of-{rest}") for n in range(1, count + 1)]
    if missing := [file.name for file in files if not is_there(file)]:
        raise FileNotFoundError(
            f"{path} is one of a set of {len(files)} files, which lacks {listed(missing)}; "
            "download them beside it"
        )
    return files


def _check_set(files: list[Path], metadata: Mapping[str, Any]) -> None:
    count = metadata.get("split.count", 1) or 1
    if count != len(files):
        raise ValueError(
            f"{files[0]} says that it is one of {shorten(count)} files, and {len(files)} is here "
            "under such a name; give them the names they had, NAME-00001-of-0000N.gguf"
        )


def _config(
    metadata: Mapping[str, Any], tensors: Mapping[str, RawTensor], max_seq_len: int | None
) -> tuple[Config, tuple[str, ...], tuple[str, ...]]:
    embedding, freqs = tensors.get(_EMBEDDING), tensors.get(_FREQS)
    plain = None if freqs is None else freqs.plain()
    config, notes, warnings = read_config(
        metadata,
        vocab_size=1 if embedding is None else embedding.shape[0],
        names=tensors.keys(),
        freqs=None if plain is None else plain.astype(np.float32).reshape(-1),
        max_seq_len=max_seq_len,
    )
    # Before the table is made: a number in a stranger's file must not decide how long it gets.
    if config.n_layers > len(tensors):
        raise ValueError(
            f"it holds {len(tensors)} tensors, too few for a model of block_count={config.n_layers}"
        )
    return config, notes, warnings


def _zero_biases(tensors: dict[str, RawTensor], config: Config) -> list[str]:
    """Adds, as zeros, the biases that no layer stores while it stores others; a note on each kind.

    Qwen's attention turned into LLaMA's has biases of q, k and v alone, and that of o is then 0.
    """
    kinds: dict[str, list[str]] = {}
    for row in names_table(config):
        if row.gguf.endswith(".bias"):
            kinds.setdefault(row.gguf.split(".")[2], []).append(row.gguf)
    left_out = [kind for kind, names in kinds.items() if not any(n in tensors for n in names)]
    for kind in left_out:
        for name in kinds[kind]:
            matrix = tensors.get(f"{name.removesuffix('bias')}weight")
            if matrix is not None:  # or else that is what is missing
                rows = matrix.shape[0]
                zeros = np.zeros(rows, np.float32).view(np.uint8)
                tensors[name] = RawTensor(F32, (rows,), zeros, matrix.file)
    return [f"{kind}.bias is stored in no layer: it is zero" for kind in left_out]


def _check_names(tensors: Mapping[str, RawTensor], config: Config) -> None:
    rows = names_table(config)
    missing = [row.gguf for row in rows if row.gguf not in tensors]
    layers = f"block_count={config.n_layers}"
    if missing:
        raise ValueError(
            f"it lacks {listed(missing)}, and says {layers}; a file is missing or damaged, or the "
            "model is not LLaMA"
        )
    known = {row.gguf for row in rows}
    unknown = [name for name in tensors if name not in known and not _BUFFER.fullmatch(name)]
    if unknown:
        raise ValueError(
            f"it has {listed(unknown)}, no weight of the model that its metadata describe "
            f"({layers}); the model is not LLaMA"
        )


def _stored(tensors: Mapping[str, RawTensor], row: WeightNames) -> Stored:
    """A weight as it is read: as an array, or a quantized matrix as a value."""
    raw = tensors[row.gguf]
    if raw.shape != row.stored_shape:
        raise ValueError(
            f"{shorten(row.gguf)} has shape {list(raw.shape)} where its metadata say "
            f"{list(row.stored_shape)}; one of the two is damaged"
        )
    plain = raw.plain()
    if plain is not None:
        return StoredTensor((plain,), 0, row.transposed)
    if len(raw.shape) != 2:
        raise ValueError(f"{shorten(row.gguf)} is {raw.kind.name}, and a vector is a plain type")
    # The groups of an embedding lie along its rows, where a value has them along its columns.
    kind = RepackedTensor if row.transposed else QuantizedTensor
    return kind(raw, row.transposed)
