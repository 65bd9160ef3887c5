"""The names that torch's pickles may say, and what of ours each stands for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from llama_jax.checkpoint.files.messages import Refused, shorten

RESAVE = (
    "nothing in it was run. Where you trust the file, save its tensors alone: "
    "torch.save({name: tensor, ...}, file)"
)
"""What to do about a file that says more."""
_MAX_AXES = 16


@dataclasses.dataclass(frozen=True)
class Storage:
    """A run of numbers that lies in a record of the archive."""

    key: str
    dtype: np.dtype
    numel: int


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A strided view of a storage, counted in elements and not yet held to its bounds."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def check_name(name: str) -> None:
    """Refuses a name that no state dict of plain tensors needs."""
    if name.startswith(_QUANTIZED) and name not in DTYPES:
        raise Refused(
            f"holds float8 or quantized tensors ({shorten(name)}); get the model's bfloat16 files"
        )
    if name not in STORAGES and name not in BUILDERS and name not in DTYPES:
        raise Refused(f"its pickle names {shorten(name)}, which no state dict needs; {RESAVE}")


def _ordered_dict() -> dict[Any, Any]:
    return {}


def _tensor(
    storage: Any, offset: Any, size: Any, stride: Any, _grad: Any, _hooks: Any, flags: Any = None
) -> Tensor:
    if flags:
        raise Refused(
            "a tensor is stored conjugated or negated; save it again after resolving that"
        )
    # Before they are counted: a pickle can give one long tuple to very many tensors.
    if len(size) > _MAX_AXES:
        raise Refused(f"its pickle has a tensor of {len(size):,} axes; the file is damaged")
    same = type(storage) is Storage and len(size) == len(stride)
    if not same or not all(map(is_count, (offset, *size, *stride))):
        raise Refused("its pickle describes a tensor as torch does not; the file is damaged")
    return Tensor(storage, offset, tuple(size), tuple(stride))


def _tensor_of_dtype(*given: Any) -> Tensor:
    """A tensor whose dtype no storage of torch's has: it is said beside, and the storage counts
    bytes."""
    *tensor, dtype = given[:7]
    name = getattr(dtype, "name", None)
    if not isinstance(name, str) or name not in DTYPES:
        raise Refused("its pickle describes a tensor as torch does not; the file is damaged")
    found = _tensor(*tensor, *given[7:])
    return dataclasses.replace(
        found, storage=dataclasses.replace(found.storage, dtype=np.dtype(DTYPES[name]))
    )


def _parameter(tensor: Any, _grad: Any, _hooks: Any) -> Tensor:
    if type(tensor) is not Tensor:
        raise Refused("its pickle has a parameter that is no tensor; the file is damaged")
    return tensor


def is_count(value: Any) -> bool:
    """Whether `value` is an integer that can count something in a file."""
    return type(value) is int and 0 <= value < 2**63


STORAGES: dict[str, Any] = {
    "torch.HalfStorage": np.float16,
    "torch.BFloat16Storage": ml_dtypes.bfloat16,
    "torch.FloatStorage": np.float32,
    "torch.DoubleStorage": np.float64,
    "torch.CharStorage": np.int8,
    "torch.ShortStorage": np.int16,
    "torch.IntStorage": np.int32,
    "torch.LongStorage": np.int64,
    "torch.ByteStorage": np.uint8,
    "torch.BoolStorage": np.bool_,
    "torch.storage.UntypedStorage": np.uint8,
}
"""The dtypes of torch's storages, by their names."""
DTYPES: dict[str, Any] = {"torch.float8_e4m3fn": ml_dtypes.float8_e4m3fn}
"""Dtypes of one byte that have no storage of their own, by their names."""
_QUANTIZED = ("torch._utils._rebuild_qtensor", "torch.float8_e")
BUILDERS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _ordered_dict,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_dtype,
    "torch._utils._rebuild_parameter": _parameter,
}
"""What may be called, by its name in torch."""
