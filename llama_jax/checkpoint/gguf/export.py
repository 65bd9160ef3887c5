"""A model as a GGUF file: its metadata, and what lies in it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from llama_jax.checkpoint.blocks import Stored, whole
from llama_jax.checkpoint.dtypes import DTYPES, parse_dtype
from llama_jax.checkpoint.export_tensor import ExportTensor
from llama_jax.checkpoint.gguf.pack import pack_q4_0, pack_q8_0
from llama_jax.checkpoint.gguf.rope import written_scaling
from llama_jax.checkpoint.gguf.types import TYPES
from llama_jax.checkpoint.names import WeightNames, names_table
from llama_jax.config import Config, Llama3Scaling
from llama_jax.ops.rope import frequencies
from llama_jax.tokenizer import Tokenizer
from llama_jax.tokenizer.gguf_export import tokenizer_metadata
from llama_jax.weights.table import EMBEDDING, OUTPUT, WeightPath

MODEL = "model.gguf"
_PACKED: dict[str, Callable[[np.ndarray], np.ndarray]] = {"q8_0": pack_q8_0, "q4_0": pack_q4_0}
_NUMBER = {"F32": 0, "F16": 1, "BF16": 30, "Q8_0": 8, "Q4_0": 2}
_FILE_TYPE = {"F32": 0, "F16": 1, "BF16": 32, "Q8_0": 7, "Q4_0": 2}
"""llama.cpp's number for a file whose matrices are mostly of a type."""
_PLAIN = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


@dataclasses.dataclass(frozen=True)
class GGUFTensor(ExportTensor):
    """One tensor of the file; `dtype` is what its numbers are before they are packed."""

    kind: str

    @property
    def number(self) -> int:
        """ggml's, of its type."""
        return _NUMBER[self.kind]

    @property
    def stored_bytes(self) -> int:
        kind = TYPES[self.number]
        return math.prod(self.shape) // kind.block * kind.nbytes

    @property
    def stored_as(self) -> str:
        return self.kind

    def packed(self, block: np.ndarray) -> np.ndarray:
        pack = _PACKED.get(self.kind.lower())
        return block if pack is None else pack(block.reshape(-1, 32))


def gguf_files(
    config: Config, tensors: Mapping[WeightPath, Stored], dtype: Any
) -> dict[str, list[ExportTensor]]:
    """What lies in the file. `dtype` is a weight's, or "q8_0" or "q4_0"; None keeps each's own.

    Norms and biases stay in float32, as llama.cpp wants them. With q4_0 the embedding and the
    output are Q8_0: a code of 4 bits harms them most.
    """
    _check_dtype(dtype)
    rows = [_tensor(row, tensors[row.path], dtype) for row in names_table(config)]
    return {MODEL: [*rows, *_rope_factors(config)]}


def _check_dtype(dtype: Any) -> None:
    if dtype is None or (isinstance(dtype, str) and dtype.lower() in _PACKED):
        return
    try:
        parse_dtype(dtype)
    except ValueError:
        raise ValueError(
            f"dtype={dtype!r} is not written as GGUF; use one of {', '.join((*DTYPES, *_PACKED))}"
        ) from None


def _tensor(row: WeightNames, tensor: Stored, dtype: Any) -> GGUFTensor:
    kind = _kind(row, tensor, dtype)
    plain = {"F16": "float16", "BF16": "bfloat16"}.get(kind, "float32")
    return GGUFTensor(row.gguf, tensor, whole(row.shape), row.transposed, None, DTYPES[plain], kind)


def _kind(row: WeightNames, tensor: Stored, dtype: Any) -> str:
    if len(row.shape) == 1:
        return "F32"
    if not isinstance(dtype, str) or dtype.lower() not in _PACKED:
        return _PLAIN[(tensor.dtype if dtype is None else parse_dtype(dtype)).name]
    if row.stored_shape[1] % 32:
        return "F16"
    return "Q8_0" if row.path in (EMBEDDING, OUTPUT) else dtype.upper()


def _rope_factors(config: Config) -> list[GGUFTensor]:
    """What each of RoPE's frequencies is divided by, which is how a file says Llama 3's scaling."""
    if not isinstance(config.rope_scaling, Llama3Scaling):
        return []
    plain = frequencies(config.head_dim, config.rope_theta)
    factors = (plain / config.rope_scaling.scaled(plain, config.rope_theta)).astype(np.float32)
    part = (slice(0, len(factors)),)
    return [GGUFTensor("rope_freqs.weight", factors, part, False, None, factors.dtype, "F32")]


def gguf_metadata(
    config: Config, tensors: list[ExportTensor], tokenizer: Tokenizer | None
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What the file says of its model and its tokenizer, and notes.

    ValueError for a kind of YaRN that has no keys.
    A file of which some tensors could not be packed is still called by what most are.
    """
    c, kinds = config, [tensor.stored_as for tensor in tensors if len(tensor.shape) == 2]
    scaling, notes = written_scaling(config.rope_scaling)
    said, more = tokenizer_metadata(tokenizer, config.vocab_size)
    return {
        "general.architecture": "llama",
        "general.file_type": _FILE_TYPE[max(kinds, key=kinds.count)],
        "general.quantization_version": 2,
        "llama.vocab_size": c.vocab_size,
        "llama.context_length": c.max_seq_len,
        "llama.embedding_length": c.dim,
        "llama.block_count": c.n_layers,
        "llama.feed_forward_length": c.hidden_dim,
        "llama.attention.head_count": c.n_heads,
        "llama.attention.head_count_kv": c.n_kv_heads,
        "llama.attention.key_length": c.head_dim,
        "llama.attention.value_length": c.head_dim,
        "llama.attention.layer_norm_rms_epsilon": c.norm_eps,
        "llama.rope.dimension_count": c.head_dim,
        "llama.rope.freq_base": c.rope_theta,
        **scaling,
        **said,
    }, (*notes, *more)
