"""Adapters in the format of Hugging Face's peft: adapter_config.json, adapter_model.safetensors.

    base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight     [rank, in], our `a` turned
    base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight     [out, rank], our `b` turned

The rows of q's and k's `lora_B` are in Hugging Face's order, as those of their weights are.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from llama_jax.checkpoint.dtypes import DTYPES
from llama_jax.checkpoint.files.messages import listed, no_weight, shorten
from llama_jax.checkpoint.files.safe_paths import check_inside
from llama_jax.checkpoint.files.safetensors_file import read_safetensors
from llama_jax.checkpoint.files.torch_file import read_state_dict
from llama_jax.checkpoint.names import WeightNames, names_table
from llama_jax.checkpoint.peft.config import CONFIG, PeftConfig, read_peft_config
from llama_jax.checkpoint.source import StoredTensor
from llama_jax.config import Config
from llama_jax.tokenizer.folder import is_there
from llama_jax.tokenizer.foreign import in_short
from llama_jax.weights.lora import Adapter
from llama_jax.weights.table import EMBEDDING, WeightPath

TENSORS, TORCH = "adapter_model.safetensors", "adapter_model.bin"
PREFIX, A, B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
_COPY = ".base_layer.weight"  # of the whole weight, which peft adds where it is the output's


@in_short()
def open_peft(path: str | Path, config: Config, base: str | Path) -> dict[WeightPath, Adapter]:
    """The adapters in a folder, for the model `config` that lies in `base`; no matrix is read.

    FileNotFoundError where there is none. ValueError where it is of a kind that is not read, or
    does not fit the model: it names both.
    """
    path = Path(path)
    said, found = open_folder(path)
    rows = {_module(row): row for row in names_table(config) if _may_be_adapted(row)}
    adapters = {}
    for module in modules_of(found, path):
        if (row := rows.get(module)) is None:
            raise ValueError(
                f"{path} has an adapter of {shorten(module)}, which the model in {base} lacks or "
                f"which is no matrix that can have one; {_belongs(said)}"
            )
        a, b = found[PREFIX + module + A], found[PREFIX + module + B]
        _check_shapes(a, b, row, said, module, path, base)
        heads = {"wq": config.n_heads, "wk": config.n_kv_heads}.get(row.path[-1])
        adapters[row.path] = Adapter(
            StoredTensor((a,), 0, transposed=True),
            StoredTensor((b,), 0, transposed=True, half_split_heads=heads),
            said.scale_of(module),
        )
    if not adapters:
        raise ValueError(f"{path} holds no adapter: its file of tensors is empty")
    return adapters


def open_folder(path: Path) -> tuple[PeftConfig, Mapping[str, np.ndarray]]:
    """What an adapter's folder says of it, checked, and its arrays by name, which are not read."""
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise FileNotFoundError(f"{path} {what}; pass the folder that peft saved an adapter in")
    for name in (CONFIG, TENSORS if is_there(path / TENSORS) else TORCH):
        if not is_there(path / name):
            raise FileNotFoundError(
                f"{path} has no {name if name == CONFIG else TENSORS}; it is no folder in which "
                "peft saved an adapter"
            )
        check_inside(path, path / name)
    return read_peft_config(path / CONFIG), _tensors(path)


def module_of(row: WeightNames) -> str:
    """peft's name of the module that a weight belongs to."""
    return _module(row)


def _module(row: WeightNames) -> str:
    return row.hf.removesuffix(".weight")


def _may_be_adapted(row: WeightNames) -> bool:
    return len(row.shape) == 2 and row.path != EMBEDDING


def _tensors(path: Path) -> dict[str, np.ndarray]:
    if is_there(path / TENSORS):
        return read_safetensors(path / TENSORS)
    return read_state_dict(path / TORCH)


def modules_of(found: Mapping[str, np.ndarray], path: Path) -> list[str]:
    """The modules that have both matrices; ValueError where there is anything else."""
    modules, others = [], []
    for name in found:
        module = name.removeprefix(PREFIX).removesuffix(A).removesuffix(B)
        if name not in (PREFIX + module + A, PREFIX + module + B):
            others.append(name)
            continue
        if name.endswith(A):
            modules.append(module)
        for end in (A, B):
            if PREFIX + module + end not in found:
                raise ValueError(f"{path} lacks {shorten(PREFIX + module + end)}; copy it again")
    if others:
        way_out = "merge it with peft instead: merge_and_unload(), then save_pretrained"
        if all(name.endswith(_COPY) for name in others):
            way_out = "save it with save_pretrained(..., save_embedding_layers=False)"
        raise ValueError(
            f"{path} holds {listed(others)}, and only matrices lora_A and lora_B of linear layers "
            f"are read; {way_out}"
        )
    return modules


def _check_shapes(
    a: np.ndarray,
    b: np.ndarray,
    row: WeightNames,
    said: PeftConfig,
    module: str,
    path: Path,
    base: str | Path,
) -> None:
    rank, (inputs, outputs) = said.rank_of(module), row.shape
    for what, array, wanted in (("lora_A", a, (rank, inputs)), ("lora_B", b, (outputs, rank))):
        if array.dtype not in DTYPES.values():
            raise ValueError(
                f"{path}: {what} of {module} is {array.dtype}; {no_weight(array.dtype)}"
            )
        if array.shape != wanted:
            raise ValueError(
                f"{path}: {what} of {module} has shape {list(array.shape)}, and for the model in "
                f"{base} and a rank of {rank} it would be {list(wanted)}; {_belongs(said)}"
            )


def _belongs(said: PeftConfig) -> str:
    return (
        f"the adapter says that it is of {shorten(said.base)}"
        if said.base
        else "the adapter does not say of which model it is"
    )
