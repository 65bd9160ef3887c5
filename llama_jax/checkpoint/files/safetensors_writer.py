"""safetensors files, written tensor by tensor in one pass: every size is known beforehand."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llama_jax.checkpoint.export_tensor import ExportTensor

_DTYPES = {
    **{"float16": "F16", "bfloat16": "BF16", "float32": "F32", "float8_e4m3fn": "F8_E4M3"},
    **{"int8": "I8", "int32": "I32", "int64": "I64"},
}


def write_safetensors(
    path: Path,
    tensors: Sequence[ExportTensor],
    stream: Callable[[ExportTensor], Iterable[np.ndarray]],
) -> None:
    """Writes the tensors, whose blocks `stream` gives in the order and the dtype of the file."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # without it transformers refuses
    end = 0
    for tensor in tensors:
        start, end = end, end + tensor.nbytes
        header[tensor.name] = {
            "dtype": _DTYPES[tensor.dtype.name],
            "shape": tensor.shape,
            "data_offsets": (start, end),
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the numbers are aligned
    with path.open("xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            for block in stream(tensor):
                file.write(np.ravel(block).view(np.uint8).data)
        if file.tell() != 8 + len(text) + end:
            raise ValueError(f"{path} got {file.tell():,} bytes, not what its header announces")
        file.flush()
        os.fsync(file.fileno())
