"""A model as Meta's files: params.json, and what lies in each consolidated.NN.pth."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from llama_jax.checkpoint.blocks import Stored, whole
from llama_jax.checkpoint.export_tensor import ExportTensor
from llama_jax.checkpoint.meta.params import (
    default_max_seq_len,
    hidden_dim,
    lacks_rope_factor,
    llama3_scaling,
)
from llama_jax.checkpoint.meta.shards import ROW_PARALLEL
from llama_jax.checkpoint.names import WeightNames, names_table
from llama_jax.checkpoint.placing import Index
from llama_jax.config import Config, Llama3Scaling
from llama_jax.sharding.mesh import check_divides, check_shares_heads
from llama_jax.weights.table import EMBEDDING, WeightPath

LAYOUTS = ("llama2", "llama3")
# multiple_of and ffn_dim_multiplier as Meta's own files have them; the first that fits is written.
_PUBLISHED = ((256, 1.0), (256, 1.5), (4096, 1.3), (1024, 1.3), (4096, 1.2))


def default_layout(config: Config) -> str:
    """Which way Meta cut the embedding of the models that are like this one."""
    return "llama3" if config.rope_theta == 500000 else "llama2"


def meta_params(config: Config, layout: str) -> dict[str, Any]:
    """params.json. ValueError names what Meta's model cannot be told to do."""
    _check_expressible(config)
    c = config
    multiple_of, multiplier = _ffn(c)
    params: dict[str, Any] = {"dim": c.dim, "n_layers": c.n_layers, "n_heads": c.n_heads}
    # Meta's older code knows neither of the keys that its older files do not have.
    if layout == "llama3" or c.n_kv_heads != c.n_heads:
        params["n_kv_heads"] = c.n_kv_heads
    params |= {"vocab_size": c.vocab_size, "multiple_of": multiple_of}
    if multiplier != 1:
        params["ffn_dim_multiplier"] = multiplier
    params["norm_eps"] = c.norm_eps
    if layout == "llama3" or c.rope_theta != 10000:
        params["rope_theta"] = c.rope_theta
    if c.rope_scaling is not None:
        params["use_scaled_rope"] = True
    return params


def meta_notes(config: Config) -> tuple[str, ...]:
    """What params.json has no word for, and a reader must therefore be told."""
    notes = []
    scaling = config.rope_scaling
    if isinstance(scaling, Llama3Scaling):
        assumed = 32.0 if lacks_rope_factor(config.dim, config.n_layers) else 8.0
        if scaling.factor != 8:
            notes.append(
                f"RoPE factor {scaling.factor:g} cannot be said in params.json: Meta's own code "
                "uses 8, and is wrong at long positions"
            )
        if scaling.factor != assumed:
            notes.append(
                f"llama_jax takes these files' factor for {assumed:g} unless told: "
                f"`llama-jax convert --rope-factor {scaling.factor:g}`, and verify takes it too"
            )
    # Meta's code takes max_seq_len from its caller, and fails on a params.json that has it too.
    if config.max_seq_len != default_max_seq_len(config):
        notes.append(
            f"max_seq_len {config.max_seq_len} cannot be said in params.json: "
            f"`llama-jax convert --max-seq-len {config.max_seq_len}` tells llama_jax"
        )
    if config.tie_embeddings:
        notes.append("output.weight is written too, equal to tok_embeddings.weight, as Meta does")
    return tuple(notes)


def meta_files(
    config: Config,
    tensors: Mapping[WeightPath, Stored],
    *,
    shards: int,
    layout: str,
    dtype: np.dtype | None,
) -> dict[str, list[ExportTensor]]:
    """What lies in each file, for so many ranks of Meta's model parallelism."""
    _check_shards(config, shards, layout)
    rows = names_table(config)
    if config.tie_embeddings:
        rows.append(rows[0]._replace(meta="output.weight"))

    def outgoing(rank: int, row: WeightNames) -> ExportTensor:
        tensor, part = tensors[row.path], whole(row.shape)
        if len(part) == 2:
            by_rows = layout == "llama3" or row.meta == "output.weight"
            part = _part(config, row, rank, shards, by_rows)
        return ExportTensor(
            name=row.meta,
            tensor=tensor,
            part=part,
            transposed=row.transposed,
            head_dim=None,
            dtype=dtype or tensor.dtype,
        )

    return {
        f"consolidated.{rank:02}.pth": [outgoing(rank, row) for row in rows]
        for rank in range(shards)
    }


def _part(config: Config, row: WeightNames, rank: int, shards: int, by_rows: bool) -> Index:
    """A rank's part of a matrix in our layout; `by_rows` is how the embedding is cut."""
    name = row.path[-1]
    axis = int(not by_rows) if row.path == EMBEDDING else int(name not in ROW_PARALLEL)
    if name in ("wk", "wv") and shards > config.n_kv_heads:
        # Neighbouring ranks share a key-value head, as 405B's sixteen share its eight.
        rank, shards = rank * config.n_kv_heads // shards, config.n_kv_heads
    size = row.shape[axis] // shards
    cut = slice(rank * size, (rank + 1) * size)
    return tuple(cut if a == axis else slice(0, n) for a, n in enumerate(row.shape))


def _check_expressible(c: Config) -> None:
    way_out = "export it with format hf"
    if c.head_dim * c.n_heads != c.dim:
        raise ValueError(
            f"head_dim={c.head_dim} is not dim / n_heads = {c.dim} / {c.n_heads}, which Meta's "
            f"files take it to be; {way_out}"
        )
    if c.attention_bias or c.mlp_bias:
        raise ValueError(f"the model has biases, which Meta's has not; {way_out}")
    s = c.rope_scaling
    if s is not None and not (isinstance(s, Llama3Scaling) and s == llama3_scaling(s.factor)):
        raise ValueError(
            f"rope_scaling={s} is not Llama 3.1's, the only one that params.json can switch on; "
            f"{way_out}"
        )


def _check_shards(c: Config, shards: int, layout: str) -> None:
    if shards < 1:
        raise ValueError(f"shards={shards} must be at least 1")
    sizes = ["n_heads", "hidden_dim", "vocab_size", *(["dim"] if layout == "llama2" else [])]
    for name in sizes:
        check_divides(c, name, "shards", shards, "each file holds an equal part")
    whole_heads = "a file holds whole key-value heads, or shares one with its neighbours"
    check_shares_heads(c, "shards", shards, whole_heads)


def _ffn(c: Config) -> tuple[int, float]:
    """`multiple_of` and `ffn_dim_multiplier` from which Meta's rule makes `hidden_dim`."""
    powers = [2**n for n in range(12, -1, -1) if c.hidden_dim % 2**n == 0]
    plain = ((multiple, 1.0) for multiple in powers)
    tenths = ((m, t / 10) for m in powers if m >= 64 for t in range(1, 100))
    # Always one: the number before truncation is half above the width that it should become.
    exact = [(1, (c.hidden_dim + 0.5) / int(8 * c.dim / 3))]
    pairs = itertools.chain(_PUBLISHED, plain, tenths, exact)
    return next(pair for pair in pairs if hidden_dim(c.dim, *pair) == c.hidden_dim)
