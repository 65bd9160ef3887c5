"""Which of a folder's matrices are quantized, and by whose format they are read."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llama_jax.checkpoint.blocks import Stored
from llama_jax.checkpoint.computed import ComputedTensor
from llama_jax.checkpoint.files.json_file import read_object
from llama_jax.checkpoint.files.messages import shorten
from llama_jax.checkpoint.files.safe_paths import check_inside
from llama_jax.checkpoint.huggingface import quantized
from llama_jax.checkpoint.huggingface.files import HFTensors
from llama_jax.checkpoint.huggingface.packed import Tensors, half_split_order
from llama_jax.checkpoint.huggingface.quantized import Arranged
from llama_jax.checkpoint.names import WeightNames, names_table
from llama_jax.config import Config
from llama_jax.tokenizer.folder import is_there

_MARKS = {
    "awq": ("qweight",),
    "gptq": ("qweight",),
    "compressed-tensors": ("weight_packed", "weight_scale"),
    "fbgemm_fp8": ("weight_scale",),
    "fp8": ("weight_scale",),
    "bitsandbytes": ("SCB", "weight.absmax"),
}
"""The endings of which a quantized matrix has one, by the method that is read."""
_FORMATS = (
    *("pack-quantized", "int-quantized", "float-quantized"),
    *("naive-quantized", "mixed-precision", "dense"),
)
"""Those of compressed-tensors that are read; the last three leave it to the tensors."""
_MODULE = re.compile(r"(.*\.(?:[qkvo]_proj|gate_proj|up_proj|down_proj)|lm_head)\.(.+)")
_ACTIVATIONS = re.compile(
    r"(.*\.)?(input_scale|input_scale_ub|input_zero_point|output_scale|k_scale|v_scale|weight_format)"
)
_FLOATS = "get the model's float16 or bfloat16 files"
_BESIDE = {
    "quantize_config.json": {"quant_method": "gptq"},
    "quant_config.json": {"quant_method": "awq"},
}
"""The files of AutoGPTQ and AutoAWQ, which in older folders stand for `quantization_config`."""


def stated_beside(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The file beside config.json that says how matrices are quantized, and what it says.

    In the words of `quantization_config`: AutoAWQ's `w_bit` is its `bits`.
    """
    for name, method in _BESIDE.items():
        if is_there(file := folder / name):
            check_inside(folder, file)
            found = read_object(file)
            bits = {"bits": found["w_bit"]} if "w_bit" in found else {}
            return file, {**method, **bits, **found}
    return None


def read_quantized(
    found: HFTensors, said: Any, config: Config, config_file: Path
) -> tuple[dict[str, Stored], list[str]]:
    """The quantized matrices by name, and notes; what they are made of leaves `found`.

    `said` is quantization_config of the `config_file`, or what another file states in its place.
    ValueError names the matrix, or the variant that is not read; what is of no method that is read
    is left to others to tell.
    """
    method = said.get("quant_method") if isinstance(said, Mapping) else None
    marks = _MARKS.get(method, ()) if isinstance(method, str) else ()
    rows = {row.hf: row for row in names_table(config) if row.transposed}
    own = {name: t for name, t in _by_matrix(found.arrays).items() if name in rows}
    own = {name: t for name, t in own.items() if any(mark in t for mark in marks)}
    if not own or (method == "gptq" and "bits" not in said):
        return {}, []
    try:
        make, notes = _maker(said), []
    except ValueError as error:
        raise ValueError(f"{config_file}: {error}") from error
    last: Callable[[Any], Any] = functools.lru_cache(maxsize=1)(lambda value: value())
    values: dict[str, Stored] = {}
    for name, t in own.items():
        try:
            tensor = make(t, rows[name].shape, _arranged(rows[name], config))
        except ValueError as error:
            file = next(found.file_of[one] for one in found.file_of if one.startswith(name[:-7]))
            raise ValueError(f"{file}: {shorten(name)}: {error}; {_FLOATS}") from error
        if isinstance(tensor, ComputedTensor):  # one matrix's parts are held at a time
            tensor = dataclasses.replace(tensor, value=functools.partial(last, tensor.value))
        values[name] = tensor
        _take(found, name, t, config)
    if ignored := [name for name in found.arrays if _ACTIVATIONS.fullmatch(name)]:
        notes.append(
            "scales of activations and of the cache are ignored: weights alone are rounded"
        )
        for name in ignored:
            del found.arrays[name]
    return values, notes


def _by_matrix(arrays: Mapping[str, np.ndarray]) -> dict[str, Tensors]:
    """The tensors of each matrix by their endings, by the name that it would have as one tensor."""
    matrices: dict[str, Tensors] = {}
    for name, array in arrays.items():
        if parts := _MODULE.fullmatch(name):
            matrices.setdefault(f"{parts[1]}.weight", Tensors())[parts[2]] = array
    return matrices


def _take(found: HFTensors, name: str, t: Tensors, config: Config) -> None:
    """Leaves of a matrix's tensors one under its own name, and its bias if the model has any."""
    module = name.removesuffix("weight")
    file = next(found.file_of[module + ending] for ending in t)
    biased = config.mlp_bias if ".mlp." in name else config.attention_bias
    for ending, array in t.items():
        if ending == "bias" and (biased or np.any(array)):  # AutoGPTQ writes zeros for none
            continue
        del found.arrays[module + ending]
    found.arrays[name], found.file_of[name] = next(iter(t.values())), file


def _arranged(row: WeightNames, config: Config) -> Arranged:
    """Puts a matrix's outputs in our order: of q and k, pairs that RoPE turns are adjacent."""
    heads = {"wq": config.n_heads, "wk": config.n_kv_heads}.get(row.path[-1])
    if heads is None:
        return np.ascontiguousarray
    order = half_split_order(row.shape[1], heads)
    return lambda array: np.ascontiguousarray(array[..., order])


def _maker(said: Mapping[str, Any]) -> Callable[..., Stored]:
    """What reads one matrix of the format that quantization_config names."""
    method = said["quant_method"]
    if method == "awq":
        return _awq(said)
    if method == "gptq":
        return _gptq(said)
    if method == "compressed-tensors":
        _check_formats(said)
        return _compressed_tensors
    if method in ("fbgemm_fp8", "fp8"):
        return quantized.float8
    return _bitsandbytes


def _awq(said: Mapping[str, Any]) -> Callable[..., Stored]:
    version, bits = str(said.get("version", "gemm")).lower(), said.get("bits", 4)
    if version != "gemm" or bits != 4:
        raise ValueError(
            f"quantization_config says AWQ of version {shorten(version)} and {shorten(bits)} bits, "
            f"and gemm of 4 bits is read; {_FLOATS}"
        )
    return quantized.awq


def _gptq(said: Mapping[str, Any]) -> Callable[..., Stored]:
    bits, form = said.get("bits"), str(said.get("checkpoint_format") or "gptq").lower()
    if bits not in (4, 8) or form not in ("gptq", "gptq_v2") or said.get("dynamic"):
        mixed = " with dynamic exceptions" if said.get("dynamic") else ""
        raise ValueError(
            f"quantization_config says GPTQ of {shorten(bits)} bits as {shorten(form)}{mixed}, and "
            f"4 and 8 bits as gptq or gptq_v2 are read; {_FLOATS}"
        )
    return functools.partial(quantized.gptq, bits=bits, second=form == "gptq_v2")


def _check_formats(said: Mapping[str, Any]) -> None:
    """ValueError for what compressed-tensors' config says that its tensors do not show."""
    groups = said.get("config_groups")
    each = list(groups.values()) if isinstance(groups, Mapping) else []
    own = [group.get("format") for group in each if isinstance(group, Mapping)]
    unread = [one for one in (said.get("format"), *own) if one not in (None, *_FORMATS)]
    sparsity = said.get("sparsity_config")
    sparse = sparsity.get("format") if isinstance(sparsity, Mapping) else None
    if sparse not in (None, "dense"):
        unread.append(sparse)
    if unread:
        raise ValueError(
            f"quantization_config says compressed-tensors as {shorten(unread[0])}, and "
            f"{', '.join(_FORMATS[:3])} are read; {_FLOATS}"
        )
    turned = said.get("transform_config")
    if isinstance(turned, Mapping) and turned.get("config_groups"):
        raise ValueError(
            "quantization_config has a transform_config: matrices turn the activations when the "
            f"model runs, which is not read; {_FLOATS}"
        )


def _compressed_tensors(t: Tensors, shape: tuple[int, int], arranged: Arranged) -> Stored:
    if "weight_g_idx" in t:
        raise ValueError("compressed-tensors in the order of activations is not read")
    if "weight_scale" not in t:
        raise ValueError("its weight_scale is missing, so it may be sparse, which is not read")
    if "weight_packed" in t:
        words = t["weight_packed"]
        bits = words.ndim == 2 and 32 * words.shape[1] / shape[0]
        if bits not in (4, 8):
            raise ValueError(f"{bits:g} bits are not read, only 4 and 8")
        return quantized.packed_integers(t, shape, arranged, int(bits))
    if t["weight"].dtype == np.int8:
        return quantized.plain_integers(t, shape, arranged)
    return quantized.float8(t, shape, arranged)


def _bitsandbytes(t: Tensors, shape: tuple[int, int], arranged: Arranged) -> Stored:
    read = quantized.bitsandbytes_int8 if "SCB" in t else quantized.bitsandbytes_4bit
    return read(t, shape, arranged)
