"""A native checkpoint as a GGUF file, which llama.cpp reads."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from llama_jax.checkpoint.blocks import Stored, transposed
from llama_jax.checkpoint.reading import open_checkpoint
from llama_jax.config import Config, YarnScaling
from llama_jax.model.transformer import rope_frequencies
from llama_jax.ops import rope

_NAMES: dict[tuple[str, ...], str] = {
    ("attention_norm", "scale"): "attn_norm",
    ("attention", "wq"): "attn_q",
    ("attention", "wk"): "attn_k",
    ("attention", "wv"): "attn_v",
    ("attention", "wo"): "attn_output",
    ("ffn_norm", "scale"): "ffn_norm",
    ("feed_forward", "w1"): "ffn_gate",
    ("feed_forward", "w2"): "ffn_down",
    ("feed_forward", "w3"): "ffn_up",
}
_ENDS = {"tok_embeddings": "token_embd", "norm": "output_norm", "output": "output"}


def unsupported(config: Config) -> str | None:
    """Why llama.cpp cannot be given this model by this writer, or None where it can."""
    if config.attention_bias or config.mlp_bias:
        return "it has biases, which the GGUF writer leaves out"
    if isinstance(config.rope_scaling, YarnScaling):
        return "its RoPE scaling is YaRN, which the GGUF writer leaves out"
    return None


def write_gguf(checkpoint: Path, destination: Path) -> None:
    """Writes the checkpoint's weights in its own dtype, with token ids and no tokenizer.

    Our pairs of q and k are adjacent, as llama.cpp's are: it is Hugging Face's rows that its own
    converter has to permute.
    """
    import gguf

    source = open_checkpoint(checkpoint)
    if reason := unsupported(source.config):
        raise ValueError(f"{checkpoint} cannot be written as GGUF: {reason}")
    writer = gguf.GGUFWriter(destination, "llama")
    _add_settings(writer, source.config)
    tensors = {_name(path): tensor for path, tensor in source.tensors.items()}
    factors = _rope_factors(source.config)
    for name, tensor in tensors.items():
        shape, dtype = _held(name, tensor)
        raw = gguf.GGMLQuantizationType.BF16 if dtype.name == "bfloat16" else None
        nbytes = math.prod(shape) * dtype.itemsize
        writer.add_tensor_info(name, shape, dtype, nbytes, raw_dtype=raw)
    for name, array in factors.items():
        writer.add_tensor_info(name, array.shape, array.dtype, array.nbytes)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, tensor in tensors.items():
        writer.write_tensor_data(_values(name, tensor))
    for array in factors.values():
        writer.write_tensor_data(array)
    writer.close()


def _add_settings(writer: Any, c: Config) -> None:
    add = {
        "context_length": c.max_seq_len,
        "embedding_length": c.dim,
        "block_count": c.n_layers,
        "feed_forward_length": c.hidden_dim,
        "attention.head_count": c.n_heads,
        "attention.head_count_kv": c.n_kv_heads,
        "attention.key_length": c.head_dim,
        "attention.value_length": c.head_dim,
        "rope.dimension_count": c.head_dim,
        "vocab_size": c.vocab_size,
    }
    for name, value in add.items():
        writer.add_uint32(f"llama.{name}", value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", c.norm_eps)
    writer.add_float32("llama.rope.freq_base", c.rope_theta)
    writer.add_string("tokenizer.ggml.model", "no_vocab")


def _name(path: tuple[str, ...]) -> str:
    if path[0] in _ENDS:
        return f"{_ENDS[path[0]]}.weight"
    layer = path[0].removeprefix("layers_")
    return f"blk.{layer}.{_NAMES[path[1:]]}.weight"


def _is_turned(name: str, tensor: Stored) -> bool:
    """Whether the file has it as [out, in] where we have [in, out]."""
    return len(tensor.shape) == 2 and name != "token_embd.weight"


def _held(name: str, tensor: Stored) -> tuple[tuple[int, ...], np.dtype]:
    """The shape and the dtype that it has in the file: a vector is in float32."""
    shape = tensor.shape[::-1] if _is_turned(name, tensor) else tensor.shape
    dtype = np.dtype(np.float32) if len(shape) == 1 else tensor.dtype
    return tuple(shape), dtype


def _values(name: str, tensor: Stored) -> np.ndarray:
    """As the file holds them; bfloat16 as bytes, since NumPy writes no others of it."""
    array = transposed(tensor[...]) if _is_turned(name, tensor) else tensor[...]
    array = array.astype(_held(name, tensor)[1], copy=False)
    return array.view(np.uint8) if array.dtype.name == "bfloat16" else array


def _rope_factors(config: Config) -> dict[str, np.ndarray]:
    """What each frequency is divided by, where they are scaled."""
    if config.rope_scaling is None:
        return {}
    plain = rope.frequencies(config.head_dim, config.rope_theta)
    return {"rope_freqs.weight": (plain / rope_frequencies(config)).astype(np.float32)}
