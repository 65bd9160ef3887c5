"""A model's adapters as a folder of peft."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from llama_jax.checkpoint.blocks import Stored, whole
from llama_jax.checkpoint.export_tensor import ExportTensor
from llama_jax.checkpoint.names import WeightNames, names_table
from llama_jax.checkpoint.peft import PREFIX, A, B, module_of
from llama_jax.config import Config
from llama_jax.weights.lora import Adapter
from llama_jax.weights.table import WeightPath, layer_table


def peft_tensors(
    config: Config, adapters: Mapping[WeightPath, Adapter], dtype: np.dtype | None
) -> list[ExportTensor]:
    """The tensors of adapter_model.safetensors, in the model's order."""
    found = []
    for row in _adapted(config, adapters):
        one = adapters[row.path]
        head_dim = config.head_dim if row.path[-1] in ("wq", "wk") else None
        for end, part, heads in ((A, one.a, None), (B, one.b, head_dim)):
            found.append(_tensor(PREFIX + module_of(row) + end, part, heads, dtype))
    return found


def peft_config(
    config: Config, adapters: Mapping[WeightPath, Adapter], base: str | None
) -> dict[str, Any]:
    """adapter_config.json. Where adapters differ in rank or scale, patterns say it."""
    modules = {module_of(row): adapters[row.path] for row in _adapted(config, adapters)}
    rank = _usual([one.rank for one in modules.values()])
    alphas = {name: _alpha(one) for name, one in modules.items()}
    alpha, rslora = _usual(list(alphas.values())), False
    alike = {(one.scale, one.rank) for one in modules.values()}
    if len(alike) == 1 and not alpha.is_integer():
        by_root = round(alike.pop()[0] * math.sqrt(rank), 9)
        alpha, rslora = (by_root, True) if by_root.is_integer() else (alpha, False)
    ranks = {name: one.rank for name, one in modules.items() if one.rank != rank}
    other = {} if rslora else {name: _number(a) for name, a in alphas.items() if a != alpha}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": _number(alpha),
        "use_rslora": rslora,
        "rank_pattern": ranks,
        "alpha_pattern": other,
        "target_modules": _targets(config, adapters),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
        "modules_to_save": None,
        "use_dora": False,
    }


def _targets(config: Config, adapters: Mapping[WeightPath, Adapter]) -> list[str]:
    """The last words of the modules' names, if every layer has them, or else whole names."""
    rows = _adapted(config, adapters)
    names = {row.path[1:] for row in rows}
    layers = [path for path in adapters if path[1:] in {one.path for one in layer_table(config)}]
    if len(layers) == len(rows) == len(names) * config.n_layers:
        return sorted({module_of(row).rsplit(".", 1)[-1] for row in rows})
    return [module_of(row) for row in rows]


def _adapted(config: Config, adapters: Mapping[WeightPath, Adapter]) -> list[WeightNames]:
    return [row for row in names_table(config) if row.path in adapters]


def _tensor(name: str, part: Stored, head_dim: int | None, dtype: np.dtype | None) -> ExportTensor:
    return ExportTensor(
        name=name,
        tensor=part,
        part=whole(part.shape),
        transposed=True,
        head_dim=head_dim,
        dtype=part.dtype if dtype is None else dtype,
    )


def _alpha(one: Adapter) -> float:
    return round(one.scale * one.rank, 9)


def _number(x: float) -> int | float:
    return int(x) if float(x).is_integer() else x


def _usual(values: list[Any]) -> Any:
    return Counter(values).most_common(1)[0][0]
