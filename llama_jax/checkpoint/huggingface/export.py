"""A model as a Hugging Face folder: config.json, and what lies in each safetensors file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, assert_never

import numpy as np

from llama_jax.checkpoint.blocks import Stored, whole
from llama_jax.checkpoint.export_tensor import ExportTensor
from llama_jax.checkpoint.huggingface.compressed import Compressed, quantization_config
from llama_jax.checkpoint.names import WeightNames, names_table
from llama_jax.config import (
    Config,
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    RopeScaling,
    YarnScaling,
)
from llama_jax.tokenizer import SentencePieceTokenizer, TiktokenTokenizer, Tokenizer
from llama_jax.weights.table import WeightPath

FILE_BYTES = 5 * 10**9
"""How large a file may get, as on the Hub, where no other number is asked for."""
INDEX = "model.safetensors.index.json"


def hf_config(config: Config, dtype: np.dtype, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """config.json in the spelling of transformers 4, which 5 reads too and writes no longer."""
    c, reach = config, config.max_seq_len
    if isinstance(c.rope_scaling, DynamicScaling):
        reach = c.rope_scaling.original_max_seq_len  # transformers scales beyond this
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": c.dim,
        "intermediate_size": c.hidden_dim,
        "num_hidden_layers": c.n_layers,
        "num_attention_heads": c.n_heads,
        "num_key_value_heads": c.n_kv_heads,
        "head_dim": c.head_dim,
        "vocab_size": c.vocab_size,
        "max_position_embeddings": reach,
        "hidden_act": "silu",
        "rms_norm_eps": c.norm_eps,
        "rope_theta": c.rope_theta,
        "rope_scaling": _rope_scaling(c.rope_scaling),
        "tie_word_embeddings": c.tie_embeddings,
        "attention_bias": c.attention_bias,
        "mlp_bias": c.mlp_bias,
        **special_ids(tokenizer),
        "torch_dtype": dtype.name,
    }


def special_ids(tokenizer: Tokenizer | None) -> dict[str, Any]:
    """Bos, and eos as one id or a list; null where unknown, so that transformers supplies none."""
    if tokenizer is None:
        return {"bos_token_id": None, "eos_token_id": None}
    stops = list(tokenizer.stop_ids)
    eos = stops[0] if len(stops) == 1 else stops
    return {"bos_token_id": tokenizer.bos_id, "eos_token_id": eos}


def tokenizer_config(tokenizer: Tokenizer | None) -> dict[str, Any]:
    """tokenizer_config.json, by which transformers knows what a bare SentencePiece model is."""
    if not isinstance(tokenizer, SentencePieceTokenizer):
        return {}
    names = {id: name for name, id in tokenizer.special.items()}
    return {
        "tokenizer_config.json": {
            "tokenizer_class": "LlamaTokenizer",
            "bos_token": names.get(tokenizer.bos_id, "<s>"),
            "eos_token": names.get(tokenizer.eos_id, "</s>"),
            "unk_token": "<unk>",
            "add_bos_token": True,
            "add_eos_token": False,
        }
    }


def hf_notes(tokenizer: Tokenizer | None) -> tuple[str, ...]:
    """What a person should do for transformers to read the folder."""
    if isinstance(tokenizer, TiktokenTokenizer):
        return (
            "tokenizer.model is a tiktoken file, and transformers reads a tokenizer.json; "
            "copy it from the model's folder at Hugging Face",
        )
    return () if tokenizer else ("no tokenizer: the folder takes and gives token ids",)


def hf_files(
    config: Config,
    tensors: Mapping[WeightPath, Stored],
    *,
    matrices: Mapping[WeightPath, Compressed],
    shards: int | None,
    dtype: np.dtype | None,
) -> dict[str, list[ExportTensor]]:
    """What lies in each file: so many of them, or as few as hold `FILE_BYTES` each.

    `matrices` are those that stay quantized.
    """
    rows: list[ExportTensor] = []
    for row in names_table(config):
        if row.path in matrices:
            rows += matrices[row.path].tensors
        else:
            rows.append(_export_tensor(row, config, tensors[row.path], dtype))
    groups = _filled(rows, FILE_BYTES) if shards is None else _divided(rows, shards)
    if len(groups) == 1:
        return {"model.safetensors": groups[0]}
    count = len(groups)
    return {f"model-{i:05}-of-{count:05}.safetensors": g for i, g in enumerate(groups, start=1)}


def hf_texts(
    config: Config,
    files: Mapping[str, list[ExportTensor]],
    matrices: Mapping[WeightPath, Compressed],
    tokenizer: Tokenizer | None,
) -> dict[str, Any]:
    """The folder's JSON files, by name."""
    own = next(tensor for file in files.values() for tensor in file).dtype  # the embedding's
    said = {**hf_config(config, own, tokenizer), **quantization_config(config, matrices)}
    index = {INDEX: hf_index(files)} if len(files) > 1 else {}
    generation = {"generation_config.json": special_ids(tokenizer)}
    return {"config.json": said, **generation, **tokenizer_config(tokenizer), **index}


def hf_index(files: Mapping[str, list[ExportTensor]]) -> dict[str, Any]:
    """Which file each tensor lies in."""
    total = sum(tensor.nbytes for tensors in files.values() for tensor in tensors)
    places = {tensor.name: file for file, tensors in files.items() for tensor in tensors}
    return {"metadata": {"total_size": total}, "weight_map": places}


def _export_tensor(
    row: WeightNames, config: Config, tensor: Stored, dtype: np.dtype | None
) -> ExportTensor:
    permuted = row.path[-1] in ("wq", "wk", "bq", "bk")
    return ExportTensor(
        name=row.hf,
        tensor=tensor,
        part=whole(row.shape),
        transposed=row.transposed,
        head_dim=config.head_dim if permuted else None,
        dtype=dtype or tensor.dtype,
    )


def _filled(rows: list[ExportTensor], most: int) -> list[list[ExportTensor]]:
    """The rows in order, a new group where the next would make one larger than `most`."""
    groups: list[list[ExportTensor]] = [[]]
    size = 0
    for row in rows:
        if groups[-1] and size + row.nbytes > most:
            groups.append([])
            size = 0
        groups[-1].append(row)
        size += row.nbytes
    return groups


def _divided(rows: list[ExportTensor], count: int) -> list[list[ExportTensor]]:
    """The rows in order, in so many groups of about the same size, none of them empty."""
    if not 1 <= count <= len(rows):
        raise ValueError(
            f"shards={count} files cannot be made of {len(rows)} tensors; "
            f"use 1 to {len(rows)}, or leave it out for files of {FILE_BYTES / 1e9:g} GB"
        )
    groups, left = [], list(rows)
    for remaining in range(count, 0, -1):
        goal = sum(row.nbytes for row in left) / remaining
        take = size = 0
        while len(left) - take >= remaining and (take == 0 or size + left[take].nbytes / 2 <= goal):
            size += left[take].nbytes
            take += 1
        groups.append(left[:take])
        left = left[take:]
    return groups


def _rope_scaling(scaling: RopeScaling | None) -> dict[str, Any] | None:
    match scaling:
        case None:
            return None
        case LinearScaling(factor):
            return {"rope_type": "linear", "factor": factor}
        case DynamicScaling(factor):
            return {"rope_type": "dynamic", "factor": factor}
        case Llama3Scaling() | YarnScaling():
            fields = dataclasses.asdict(scaling)
            original = fields.pop("original_max_seq_len")
            kind = "llama3" if isinstance(scaling, Llama3Scaling) else "yarn"
            return {"rope_type": kind, **fields, "original_max_position_embeddings": original}
    assert_never(scaling)
