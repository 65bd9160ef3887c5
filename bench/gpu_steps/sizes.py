"""The sizes of the published models, read without JAX, and as transformers names them.

sizes_of("llama-3.2-1b", dry=False) -> {"hidden_size": 2048, "num_hidden_layers": 16, ...}
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

MODELS = Path(__file__).resolve().parents[2] / "configs" / "models"
TOY = {
    "dim": 64,
    "n_layers": 2,
    "n_heads": 8,
    "n_kv_heads": 4,
    "head_dim": 8,
    "hidden_dim": 96,
    "vocab_size": 256,
}
"""What a dry run makes of every model; its other numbers stay the model's own."""
NAMES = {
    "hidden_size": "dim",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "num_key_value_heads": "n_kv_heads",
    "head_dim": "head_dim",
    "intermediate_size": "hidden_dim",
    "vocab_size": "vocab_size",
    "max_position_embeddings": "max_seq_len",
    "rms_norm_eps": "norm_eps",
    "tie_word_embeddings": "tie_embeddings",
}
"""What transformers calls ours."""


def sizes_of(name: str, *, dry: bool) -> dict[str, Any]:
    """The arguments of transformers' config; RoPE's scaling, which costs nothing, is left out."""
    ours = json.loads((MODELS / f"{name}.json").read_text()) | (TOY if dry else {})
    rope = {"rope_type": "default", "rope_theta": ours["rope_theta"]}
    return {theirs: ours[own] for theirs, own in NAMES.items()} | {"rope_parameters": rope}


def heads_of_the_family() -> list[tuple[int, int]]:
    """The head sizes of the published models, and how many query heads share a key head."""
    found = set()
    for path in MODELS.glob("*.json"):
        sizes = json.loads(path.read_text())
        if path.stem != "tiny":
            found.add((sizes["head_dim"], sizes["n_heads"] // sizes["n_kv_heads"]))
    return sorted(found)
