"""Native checkpoints to be changed: without the sums of their files, as a stranger may write one.

With the sums no changed file would come as far as its reader; `fuzz.flips` tries those.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax

import llama_jax
from llama_jax.checkpoint.convert import convert
from llama_jax.sharding.adapters import random_adapters, with_adapters
from llama_jax.weights.hadamard import Hadamard
from llama_jax.weights.params import nested, weight_at
from llama_jax.weights.table import weight_table

KINDS = {
    **{"wq": "int4", "wk": "int8", "wv": "fp8", "wo": "int8_dynamic"},
    **{"w1": "int8_channel", "w2": "int8"},
}
TURNED = ("layers_0", "feed_forward", "w2")
ADAPTED = [("layers_0", "attention", "wq"), ("layers_1", "feed_forward", "w3")]


FILES = (
    *("config.json", "checkpoint.json"),
    *("weights/layers_0.attention.wq/zarr.json", "weights/layers_0.attention.wq/c/0/0"),
)
"""Of a checkpoint of arrays, to be changed."""


def arrays(native: Path, folder: Path) -> None:
    """A copy of a checkpoint of arrays."""
    shutil.copytree(native, folder)
    _without_sums(folder)


def kinds(meta: Path, folder: Path) -> tuple[str, ...]:
    """A checkpoint of weights of every kind, with adapters too, and the files to change."""
    rounded = folder.with_name(f"{folder.name}-rounded")
    convert(meta, rounded, quantize=lambda name: KINDS.get(name.split(".")[-1]))
    params = llama_jax.load(rounded)
    weights = {path: weight_at(params.weights, path) for path in weight_table(params.config)}
    weights[TURNED] = Hadamard(weights[TURNED], 32)
    params = params.replace(weights=nested(weights))
    params = with_adapters(params, random_adapters(jax.random.key(0), params, ADAPTED, 2, 2.0))
    llama_jax.save(params, folder)
    _without_sums(folder)
    lora = "weights/layers_0.attention.wq"
    changed = ("base_words/zarr.json", "base_words/c/0/0/0", "base_scale/zarr.json", "a/zarr.json")
    return ("checkpoint.json", *(f"{lora}.{file}" for file in changed))


def _without_sums(folder: Path) -> None:
    file = folder / "checkpoint.json"
    said = json.loads(file.read_text())
    file.write_text(json.dumps({k: v for k, v in said.items() if not k.endswith("sha256")}))
