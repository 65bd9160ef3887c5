"""Writes Hugging Face folders, whole and broken, without the libraries that usually do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from llama_jax.checkpoint.names import names_table
from llama_jax.config import Config

DTYPES = {
    np.dtype(np.float32): "F32",
    np.dtype(np.float16): "F16",
    np.dtype(ml_dtypes.bfloat16): "BF16",
    np.dtype(np.float64): "F64",
    np.dtype(np.int8): "I8",
    np.dtype(np.uint8): "U8",
    np.dtype(np.int32): "I32",
    np.dtype(np.int64): "I64",
    np.dtype(ml_dtypes.float8_e4m3fn): "F8_E4M3",
}
SMALL: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 48,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
}


def header_of(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """What a sound header says of `tensors`, laid side by side."""
    header, begin = {}, 0
    for name, array in tensors.items():
        end = begin + array.nbytes
        offsets = [begin, end]
        header[name] = {
            "dtype": DTYPES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": offsets,
        }
        begin = end
    return header


def framed(header: Any, data: bytes = b"") -> bytes:
    """A file of any header, be it bytes or a value for JSON."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def write_safetensors(file: Path, tensors: Mapping[str, np.ndarray]) -> Path:
    data = b"".join(np.ascontiguousarray(array).tobytes() for array in tensors.values())
    file.write_bytes(framed(header_of(tensors), data))
    return file


def config_of(given: Mapping[str, Any]) -> Config:
    """The config that `SMALL` and what it may be changed to mean, stated once more."""
    return Config(
        dim=given["hidden_size"],
        n_layers=given["num_hidden_layers"],
        n_heads=given["num_attention_heads"],
        n_kv_heads=given["num_key_value_heads"],
        head_dim=given["head_dim"],
        hidden_dim=given["intermediate_size"],
        vocab_size=given["vocab_size"],
        norm_eps=given["rms_norm_eps"],
        rope_theta=given["rope_theta"],
        rope_scaling=None,
        tie_embeddings=given["tie_word_embeddings"],
        attention_bias=given.get("attention_bias", False),
        mlp_bias=given.get("mlp_bias", False),
        max_seq_len=given["max_position_embeddings"],
    )


def tensors_of(given: Mapping[str, Any], dtype: Any = np.float32) -> dict[str, np.ndarray]:
    """Random weights by Hugging Face's names, in its layout."""
    rng = np.random.default_rng(0)
    found = {}
    for row in names_table(config_of(given)):
        shape = row.shape if "embed" in row.hf else row.shape[::-1]
        found[row.hf] = rng.normal(size=shape).astype(dtype)
    return found


def write_folder(
    folder: Path,
    tensors: Mapping[str, np.ndarray] | None = None,
    *,
    files: int = 0,
    dtype: Any = np.float32,
    **changes: Any,
) -> Path:
    """A whole folder: one file, or `files` with an index. A change to `...` removes a key."""
    given = SMALL | changes
    if tensors is None:
        tensors = tensors_of(given | {k: SMALL[k] for k, v in given.items() if v is ...}, dtype)
    folder.mkdir(parents=True, exist_ok=True)
    said = {key: value for key, value in given.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(said))
    if not files:
        write_safetensors(folder / "model.safetensors", tensors)
        return folder
    weight_map = {}
    for n in range(files):
        file = f"model-{n + 1:05}-of-{files:05}.safetensors"
        part = dict(list(tensors.items())[n::files])
        write_safetensors(folder / file, part)
        weight_map |= dict.fromkeys(part, file)
    write_index(folder, weight_map)
    return folder


def write_index(folder: Path, weight_map: Any) -> None:
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def mutated(content: bytes, rng: Any) -> bytes:
    """`content` with a few bytes flipped, cut out, doubled, or replaced by telling ones."""
    changed = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 8])):
        at = rng.randrange(len(changed)) if changed else 0
        match rng.randrange(5):
            case 0 if changed:
                changed[at] = rng.randrange(256)
            case 1:
                del changed[at : at + rng.choice([1, 7, 100])]
            case 2:
                changed[at:at] = changed[at : at + rng.choice([1, 7, 100])]
            case 3:
                changed[at : at + 1] = rng.choice(
                    [b"0", b"9", b"-", b"}", b'"', b"null", b"[", b"1e999", b"..", b"\xff", b"true"]
                )
            case 4:
                changed = changed[: rng.choice([at, len(changed) - 1])]
    return bytes(changed)
