"""Quantized matrices as compressed-tensors has them, whose folders transformers opens."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from llama_jax.checkpoint.blocks import whole
from llama_jax.checkpoint.export_tensor import ExportTensor, to_half_split
from llama_jax.checkpoint.huggingface.packed import words_of
from llama_jax.checkpoint.names import WeightNames, names_table
from llama_jax.checkpoint.quantizing import ComputedPart
from llama_jax.config import Config
from llama_jax.weights.int4 import GROUP, Int4
from llama_jax.weights.table import OUTPUT, WeightPath
from llama_jax.weights.weight import is_value

PACKED, INTEGERS, FLOATS = "pack-quantized", "int-quantized", "float-quantized"


@dataclasses.dataclass(frozen=True)
class Scheme:
    """How a matrix is stored; `quantization_config` says each scheme once."""

    format: str
    bits: int
    group: int | None
    """How many inputs share a scale; None where all of an output's do."""
    zeros: bool = False
    """Whether each group has an integer of its own that stands for 0."""


@dataclasses.dataclass(frozen=True)
class Compressed:
    """One matrix: its scheme, and its tensors as a file has them."""

    scheme: Scheme
    tensors: list[ExportTensor]


def compressed_matrices(
    config: Config, tensors: Mapping[WeightPath, Any]
) -> tuple[dict[WeightPath, Compressed], tuple[str, ...]]:
    """The quantized matrices that compressed-tensors can hold as they are, and notes on the others.

    The output is none of them: vLLM before 2026 and SGLang read no quantized `lm_head`. Memory: one
    matrix and what it becomes, once it is read; of 4 bits with minima these are read here.
    """
    last: Callable[[Any], Any] = functools.lru_cache(maxsize=1)(lambda arrays: arrays())
    found: dict[WeightPath, Compressed] = {}
    left = []
    for row in names_table(config):
        tensor = tensors[row.path]
        if not is_value(tensor):
            continue
        zeros = _zeros(tensor)
        scheme = _scheme(tensor, zeros) if row.transposed and row.path != OUTPUT else None
        if scheme is None:
            left.append(row)
            continue
        head_dim = config.head_dim if row.path[-1] in ("wq", "wk") else None
        arrays = functools.partial(_arrays, tensor, scheme, zeros, head_dim)
        parts = _exported(row, scheme, functools.partial(last, arrays))
        found[row.path] = Compressed(scheme, parts)
    return found, _notes(left, tensors)


def quantization_config(
    config: Config, matrices: Mapping[WeightPath, Compressed]
) -> dict[str, Any]:
    """What config.json says of the matrices; nothing where there are none."""
    if not matrices:
        return {}
    modules: dict[Scheme, list[str]] = {}
    plain = [] if not config.tie_embeddings else ["lm_head"]
    for row in names_table(config):
        name = row.hf.removesuffix(".weight")
        if row.path in matrices:
            modules.setdefault(matrices[row.path].scheme, []).append(name)
        elif row.transposed:
            plain.append(name)
    groups = {
        f"group_{n}": _group(scheme, ["Linear"] if len(modules) == 1 else names)
        for n, (scheme, names) in enumerate(modules.items())
    }
    formats = sorted({scheme.format for scheme in modules})
    return {
        "quantization_config": {
            "quant_method": "compressed-tensors",
            "format": formats[0] if len(formats) == 1 else "mixed-precision",
            "quantization_status": "compressed",
            "config_groups": groups,
            "ignore": plain,
        }
    }


def _group(scheme: Scheme, targets: list[str]) -> dict[str, Any]:
    kind = "float" if scheme.format == FLOATS else "int"
    weights = {
        "num_bits": scheme.bits,
        "type": kind,
        "symmetric": not scheme.zeros,
        "strategy": "channel" if scheme.group is None else "group",
        "group_size": scheme.group,
        "dynamic": False,
    }
    rows = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
    return {
        "targets": targets,
        "weights": weights,
        "input_activations": rows if scheme.format == INTEGERS else None,
        "output_activations": None,
        "format": scheme.format,
    }


def _scheme(tensor: Any, zeros: np.ndarray | None) -> Scheme | None:
    """None where the format has no form of such a matrix."""
    parts = tensor.parts()
    if tensor.kind == "int4" and ("minimum" in parts) == (zeros is not None):
        return Scheme(PACKED, 4, GROUP, zeros is not None)
    if tensor.kind == "int8" and "minimum" not in parts:
        scales = parts["scale"].shape
        return Scheme(PACKED, 8, None if len(scales) == 1 else tensor.shape[0] // scales[0])
    return {
        "int8_dynamic": Scheme(INTEGERS, 8, None),
        "fp8": Scheme(FLOATS, 8, None),
    }.get(tensor.kind)


def _zeros(tensor: Any) -> np.ndarray | None:
    """The integers from 0 to 15 that stand for 0, uint8 [groups, out], where minima are such.

    AWQ's and GPTQ's are; those of GGUF's types are any numbers.
    """
    parts = tensor.parts()
    if tensor.kind != "int4" or "minimum" not in parts:
        return None
    scale, minimum = (parts[name][...].astype(np.float32) for name in ("scale", "minimum"))
    with np.errstate(all="ignore"):
        zeros = np.nan_to_num(np.round(-minimum / scale)).clip(0, 15)
    return zeros.astype(np.uint8) if (-zeros * scale == minimum).all() else None


def _arrays(
    tensor: Any, scheme: Scheme, zeros: np.ndarray | None, head_dim: int | None
) -> dict[str, np.ndarray]:
    """The tensors by their endings, outputs first and in Hugging Face's order."""
    parts = {name: part[...] for name, part in tensor.parts().items()}

    def rows(array: np.ndarray) -> np.ndarray:
        found = np.ascontiguousarray(array)
        return to_half_split(found, head_dim) if head_dim else found

    scale = parts["scale"].reshape(-1, tensor.shape[1])
    found = {"weight_scale": rows(scale.T)}
    match tensor.kind:
        case "fp8":
            return found | {"weight": rows(parts["bits"].T).view(ml_dtypes.float8_e4m3fn)}
        case "int8_dynamic":
            return found | {"weight": rows(parts["values"])}
        case "int8":
            numbers = parts["values"].view(np.uint8) ^ np.uint8(128)
        case _:
            numbers = np.asarray(Int4.from_parts(parts, {}, tensor.dtype).integers())
    found["weight_packed"] = words_of(rows(numbers.T), scheme.bits, 1)
    found["weight_shape"] = np.array(tensor.shape[::-1], np.int64)
    if zeros is not None:
        found["weight_zero_point"] = words_of(rows(zeros.T), scheme.bits, 0)
    return found


def _exported(row: WeightNames, scheme: Scheme, arrays: Callable[[], Any]) -> list[ExportTensor]:
    """The tensors of one matrix, with shapes in place of numbers until these are read."""
    inputs, outputs = row.shape
    groups, each = inputs // (scheme.group or inputs), 32 // scheme.bits
    shapes: dict[str, tuple[tuple[int, ...], Any]] = {}
    if scheme.format == PACKED:
        shapes["weight_packed"] = (outputs, -(-inputs // each)), np.int32
        shapes["weight_shape"] = (2,), np.int64
    else:
        kind = ml_dtypes.float8_e4m3fn if scheme.format == FLOATS else np.int8
        shapes["weight"] = (outputs, inputs), kind
    shapes["weight_scale"] = (outputs, groups), np.float32
    if scheme.zeros:
        shapes["weight_zero_point"] = (-(-outputs // each), groups), np.int32
    module = row.hf.removesuffix("weight")
    return [
        ExportTensor(
            name=module + ending,
            tensor=ComputedPart(shape, np.dtype(dtype), ending, arrays),
            part=whole(shape),
            transposed=False,
            head_dim=None,
            dtype=np.dtype(dtype),
        )
        for ending, (shape, dtype) in shapes.items()
    ]


def _notes(left: list[WeightNames], tensors: Mapping[WeightPath, Any]) -> tuple[str, ...]:
    if not left:
        return ()
    output = [row for row in left if row.path == OUTPUT]
    others = len(left) - len(output)
    notes = []
    if output:
        notes.append(
            f"lm_head is written as {np.dtype(tensors[OUTPUT].dtype)}: few programs read a "
            "quantized one"
        )
    if others:
        notes.append(
            f"{others} quantized matrices are written as arrays, since compressed-tensors has no "
            "form of theirs"
        )
    return tuple(notes)
