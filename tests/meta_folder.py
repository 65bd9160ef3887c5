"""Small checkpoints in Meta's format."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch_zip

from llama_jax.checkpoint.meta.params import read_params
from llama_jax.checkpoint.names import names_table
from llama_jax.config import Config

PARAMS = {
    "dim": 32,
    "n_layers": 2,
    "n_heads": 8,
    "n_kv_heads": 4,
    "vocab_size": 48,
    "multiple_of": 16,
    "norm_eps": 1e-5,
}


COLUMNS = ("wo", "w2")


States = list[dict[str, np.ndarray]]


def weights_of(config: Config, dtype=np.float32) -> dict[str, np.ndarray]:
    """Random weights by Meta's names, whole and in Meta's layout."""
    rng = np.random.default_rng(0)
    rows = {row.meta: row.shape for row in names_table(config.replace(tie_embeddings=False))}
    return {
        name: rng.normal(size=shape if name.startswith("tok") else shape[::-1]).astype(dtype)
        for name, shape in rows.items()
    }


def cut(weights: dict[str, np.ndarray], shards: int, embedding_axis: int = 0) -> States:
    """The weights as Meta's model parallelism lays them over files."""
    states: States = [{} for _ in range(shards)]
    for name, whole in weights.items():
        axis = int(name.split(".")[-2] in COLUMNS)
        axis = embedding_axis if name.startswith("tok") else axis
        parts = [whole] * shards if whole.ndim == 1 else np.split(whole, shards, axis)
        for state, part in zip(states, parts, strict=True):
            state[name] = part
    return states


def write(folder: Path, states: States, **params) -> Path:
    folder.mkdir(exist_ok=True)
    for former in folder.glob("consolidated.*.pth"):
        former.unlink()
    (folder / "params.json").write_text(json.dumps({**PARAMS, **params}))
    for rank, state in enumerate(states):
        torch_zip.save(folder / f"consolidated.{rank:02}.pth", state, prefix=f"consolidated.{rank}")
    return folder


def config_of(tmp_path: Path, **params) -> Config:
    (tmp_path / "params.json").write_text(json.dumps({**PARAMS, **params}))
    return read_params(tmp_path / "params.json").config


def assert_holds(source, weights: dict[str, np.ndarray]) -> None:
    for row in names_table(source.config):
        tensor, expected = source.tensors[row.path], weights[row.meta]
        expected = expected if row.path[0] == "tok_embeddings" else expected.T
        assert tensor.shape == row.shape == expected.shape
        assert tensor[...].tobytes() == expected.tobytes()
    assert list(source.tensors) == [row.path for row in names_table(source.config)]


def small_1b(tmp_path: Path, **changes) -> Path:
    """Llama 3.2 1B by dim and layers, and next to nothing by the rest."""
    sizes = {"dim": 2048, "n_layers": 16, "n_heads": 8, "n_kv_heads": 1, "vocab_size": 16}
    sizes |= {"ffn_dim_multiplier": 0.001, "multiple_of": 2, "use_scaled_rope": True, **changes}
    config = config_of(tmp_path, **sizes)
    states = [{row.meta: np.zeros(row.shape[::-1], np.float16) for row in names_table(config)}]
    states[0]["tok_embeddings.weight"] = np.zeros((16, 2048), np.float16)
    return write(tmp_path / "m", states, **sizes)
