"""Whether a folder holds the tensors of the model that its config.json describes, and no others."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from llama_jax.checkpoint.files.messages import listed
from llama_jax.checkpoint.foreign import kind_of
from llama_jax.checkpoint.huggingface.config import HFConfig
from llama_jax.checkpoint.huggingface.files import HFTensors
from llama_jax.checkpoint.names import WeightNames, names_table
from llama_jax.config import Config

OUTPUT = "lm_head.weight"
_IS_READ = re.compile(r"quantized by (GPTQ;|GPTQ or AWQ|bitsandbytes|compressed-tensors)")
_UNSAID = ", or state quantization_config in config.json, which says nothing of how to read it"


def zero_biases(found: HFTensors, config: Config) -> list[str]:
    """Adds the biases that no layer stores while it stores others, as zeros; a note on each kind.

    Qwen's attention turned into LLaMA's has biases of q, k and v alone, and that of o is then 0.
    """
    groups: dict[str, dict[str, list[WeightNames]]] = {}
    for row in names_table(config):
        if row.hf.endswith(".bias"):
            _, _, _, group, kind, _ = row.hf.split(".")
            groups.setdefault(group, {}).setdefault(kind, []).append(row)
    notes = []
    for group, kinds in groups.items():
        stored = {kind: [row.hf in found.arrays for row in rows] for kind, rows in kinds.items()}
        for kind, here in stored.items():
            if any(here) or not any(map(all, stored.values())):
                continue
            for row in kinds[kind]:
                matrix = row.hf.removesuffix("bias") + "weight"
                if matrix in found.arrays:  # or else that is what is missing
                    dtype = found.arrays[matrix].dtype
                    found.arrays[row.hf] = np.zeros(row.shape, dtype)
                    found.file_of[row.hf] = found.file_of[matrix]
            notes.append(f"{group}.{kind}.bias is stored in no layer: it is zero")
    return notes


def check_names(
    path: Path, found: HFTensors, said: HFConfig, config: Config, buffers: list[str]
) -> None:
    """ValueError where tensors are missing or unknown; their names may show why."""
    rows = names_table(config)
    known = {row.hf for row in rows} | {OUTPUT, *buffers}
    missing = [row.hf for row in rows if row.hf not in found.arrays]
    unknown = [name for name in found.arrays if name not in known]
    layers = f"config.json says num_hidden_layers={config.n_layers}"
    if unknown and (kind := kind_of(unknown, known)):
        also = f" ({said.quantized})" if said.quantized else _UNSAID * bool(_IS_READ.search(kind))
        raise ValueError(f"{found.file_of[unknown[0]]}: {kind}{also}")
    if missing:
        raise ValueError(f"{path} lacks {listed(missing)}, and {layers}; {_add(missing)}")
    if unknown:
        way_out = (
            "attention_bias or mlp_bias true in config.json would make it one"
            if unknown[0].endswith(".bias")
            else "the model is not LLaMA, or another's files lie there"
        )
        raise ValueError(
            f"{found.file_of[unknown[0]]} has {listed(unknown)}, no weight of the model that "
            f"config.json describes ({layers}); {way_out}"
        )


def _add(missing: list[str]) -> str:
    if missing == [OUTPUT]:
        return "add it, or if it is the embedding say so: tie_word_embeddings true in config.json"
    if all(name.endswith(".bias") for name in missing):
        return (
            "a file is missing or damaged, or the model has no biases: attention_bias and mlp_bias "
            "false in config.json"
        )
    return "a file is missing or damaged, or the model is not LLaMA"
