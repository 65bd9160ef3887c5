"""Meta's int4 checkpoints: Llama 3.2 as SpinQuant and as QLoRA.

A matrix is int8 [out, in] of numbers from -8 to 7, beside its `scales` [out, in / 32]. The
embedding and the output are int8 with a scale a row. QLoRA's matrices have an adapter beside them,
`adaptor.A` [rank, in] and `adaptor.B` [out, rank]. So Meta's own loader has it (llama-models,
models/llama3/quantization/loader.py).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from llama_jax.checkpoint.blocks import ReadByPart, Stored
from llama_jax.checkpoint.dtypes import DTYPES
from llama_jax.checkpoint.files.mapped import check_whole, still_whole
from llama_jax.checkpoint.files.messages import shorten
from llama_jax.checkpoint.huggingface.quantized import eight_bits, four_bits
from llama_jax.checkpoint.meta.fp8 import read_fp8
from llama_jax.checkpoint.meta.params import MetaParams
from llama_jax.checkpoint.meta.shards import Shards
from llama_jax.checkpoint.names import WeightNames, names_table
from llama_jax.checkpoint.native.values import StoredValue
from llama_jax.checkpoint.placing import Index
from llama_jax.checkpoint.source import StoredTensor
from llama_jax.config import Config
from llama_jax.weights.hadamard import Hadamard
from llama_jax.weights.lora import Lora
from llama_jax.weights.table import EMBEDDING, OUTPUT

_PARTS = re.compile(r"(.+)\.(scales|zeros|adaptor\.[AB]\.weight)")
_FLOATS = "get the model's bfloat16 files"


def read_quantized(
    shards: Shards, params: MetaParams, config: Config
) -> tuple[Shards, dict[str, Stored], list[str]]:
    """The quantized matrices by Meta's name, and notes; what they are made of leaves the shards.

    None where the files are of an ordinary model. ValueError names the matrix that is not whole, or
    the variant that is not read.
    """
    # Before the table is made: a number in a stranger's file must not decide how long it gets.
    if config.n_layers > len(shards.pieces):
        return shards, {}, []
    rows = {row.meta: row for row in names_table(config) if len(row.shape) == 2}
    parts: dict[str, dict[str, np.ndarray]] = {}
    for name, pieces in shards.pieces.items():
        match = _PARTS.fullmatch(name)
        if match and f"{match[1]}.weight" in rows:
            parts.setdefault(f"{match[1]}.weight", {})[match[2]] = pieces[0]
    if any("scales" in own for own in parts.values()):
        return _int4(shards, params, rows, parts)
    return read_fp8(shards, list(rows.values()))


def _int4(
    shards: Shards,
    params: MetaParams,
    rows: Mapping[str, WeightNames],
    parts: Mapping[str, Mapping[str, np.ndarray]],
) -> tuple[Shards, dict[str, Stored], list[str]]:
    file = shards.files[0]
    if len(shards.files) > 1:
        raise ValueError(
            f"{file}: int4 weights cut into {len(shards.files)} files are not read, only one file; "
            f"{_FLOATS}"
        )
    turned = _is_turned(params, any(len(own) > 1 + ("zeros" in own) for own in parts.values()))
    values: dict[str, Stored] = {}
    for name, own in parts.items():
        try:
            weight = shards.pieces[name][0] if name in shards.pieces else None
            values[name] = _value(rows[name], weight, own, params, turned)
        except ValueError as error:
            raise ValueError(f"{file}: {shorten(name)}: {error}; {_FLOATS}") from error
    left = {
        name: pieces
        for name, pieces in shards.pieces.items()
        if not ((match := _PARTS.fullmatch(name)) and f"{match[1]}.weight" in parts)
    }
    notes = ["activations are not rounded to 8 bits, as Meta's program does: weights alone are"]
    if turned:
        notes.append("SpinQuant: a Hadamard matrix turns what the down projections multiply")
    return dataclasses.replace(shards, pieces=left), values, notes


def _is_turned(params: MetaParams, adapted: bool) -> bool:
    """Whether a Hadamard matrix goes before the down projections. ValueError where unsaid."""
    said = params.quantization.get("spinquant")
    if said is None and not adapted:
        raise ValueError(
            "params.json does not say whether the int4 weights are SpinQuant's, whose down "
            'projections need a Hadamard matrix; add "spinquant": true or false to its '
            "quantization_args"
        )
    return bool(said)


def _value(
    row: WeightNames,
    weight: np.ndarray | None,
    own: Mapping[str, np.ndarray],
    params: MetaParams,
    turned: bool,
) -> Stored:
    outputs, inputs = row.stored_shape
    scales, shape = own.get("scales"), (inputs, outputs)
    if weight is None or weight.dtype != np.int8 or weight.shape != row.stored_shape:
        found = "missing" if weight is None else f"{weight.dtype} of shape {list(weight.shape)}"
        raise ValueError(f"its weight is {found}, where int8 {list(row.stored_shape)} is implied")
    if scales is None or scales.dtype not in DTYPES.values() or scales.ndim not in (1, 2):
        raise ValueError("its scales are missing, or no floats of one or two axes")
    scales = scales.reshape(len(scales), -1)
    if len(scales) != outputs:
        raise ValueError(f"its scales have shape {list(scales.shape)}, not one row an output")
    if row.path == EMBEDDING:
        if scales.shape[1] != 1:
            raise ValueError(f"its scales have shape {list(scales.shape)}, not one a token")
        return _ScaledRows(weight, scales)
    if row.path == OUTPUT:
        return eight_bits("int8", shape, lambda: still_whole(weight).T, scales.T, None, _same)
    base: Any = four_bits("int4", shape, _nibbles(weight), scales.T, _zeros(own, scales), _same)
    if turned and row.path[-1] == "w2":
        base = _around(Hadamard(base, _power_of_two(inputs)))
    if "adaptor.A.weight" not in own and "adaptor.B.weight" not in own:
        return base
    return _with_adapter(row, base, own, params)


def _nibbles(weight: np.ndarray) -> Callable[[], np.ndarray]:
    """What gives the integers 0 to 15, uint8 [in, out], of -8 to 7, int8 [out, in]."""

    def integers() -> np.ndarray:
        check_whole(weight)
        if weight.min() < -8 or weight.max() > 7:
            raise ValueError("an int4 weight holds numbers beyond -8 to 7; the file is damaged")
        return (weight.T + np.int8(8)).view(np.uint8)

    return integers


def _zeros(own: Mapping[str, np.ndarray], scales: np.ndarray) -> Callable[[], np.ndarray] | None:
    """What gives the integers, from 0 to 15, that stand for 0, [groups, out]; None: all 8."""
    found = own.get("zeros")
    if found is None or not np.any(found):
        return None
    if found.size != scales.size:
        raise ValueError(f"its zeros have shape {list(found.shape)}, and its scales another")
    return lambda: still_whole(found).reshape(scales.shape).astype(np.float32).T + np.float32(8)


def _with_adapter(
    row: WeightNames, base: Any, own: Mapping[str, np.ndarray], params: MetaParams
) -> Stored:
    a, b = (own.get(f"adaptor.{name}.weight") for name in "AB")
    scale, (inputs, outputs) = params.adapter.get("scale"), row.shape
    if a is None or b is None or a.ndim != 2 or b.ndim != 2 or not len(a):
        raise ValueError("its adaptor is no pair of matrices")
    if (a.shape[1], b.shape) != (inputs, (outputs, len(a))):
        raise ValueError(
            f"its adaptor has shapes {list(a.shape)} and {list(b.shape)}, where [rank, {inputs}] "
            f"and [{outputs}, rank] are implied"
        )
    if a.dtype not in DTYPES.values() or b.dtype not in DTYPES.values():
        raise ValueError(f"its adaptor is {a.dtype} and {b.dtype}, no floats that are read")
    if isinstance(scale, bool) or not isinstance(scale, int | float):
        raise ValueError("lora_args in params.json says no scale, which its adaptor needs")
    thin = [StoredTensor((one,), 0, transposed=True) for one in (a, b)]
    return _around(Lora(base, thin[0], thin[1], float(scale)))


def _around(value: Any) -> Any:
    """A value around another, whose parts are read when they are asked for."""
    return StoredValue(value.kind, value.dtype, value.constants(), value.parts())


def _power_of_two(inputs: int) -> int:
    if inputs & (inputs - 1):
        raise ValueError(f"SpinQuant of {inputs} inputs is not read, only of a power of two")
    return inputs


def _same(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array)


@dataclasses.dataclass(frozen=True)
class _ScaledRows(ReadByPart):
    """An embedding of int8 rows [vocab, dim], each with a scale, as an array of their dtype."""

    rows: np.ndarray
    scales: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return self.rows.shape

    @property
    def dtype(self) -> np.dtype:
        return self.scales.dtype

    def read(self, index: Index, out: np.ndarray) -> None:
        scales = still_whole(self.scales)[index[0]].astype(np.float32)
        out[...] = (still_whole(self.rows)[index].astype(np.float32) * scales).astype(self.dtype)
