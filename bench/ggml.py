"""ggml's own rounding of matrices, and the types that `llama-quantize` gives each of a model.

The library is `libggml-base`, which every build of llama.cpp has; what it writes is read by our own
GGUF types, which the tests hold to ggml's bit for bit.
"""

from __future__ import annotations

import ctypes
import math

import numpy as np

from llama_jax.checkpoint.gguf.types import TYPES
from llama_jax.config import Config
from llama_jax.weights.table import EMBEDDING, OUTPUT, WeightPath

FILES = ("Q8_0", "Q4_0", "Q4_K_M")
"""The files of which the quality is compared."""
_FALLBACK = {"Q4_K": "Q5_0", "Q6_K": "Q8_0"}
"""What takes a type's place in a matrix whose rows are no multiple of 256."""


class Ggml:
    """A build's rounding."""

    def __init__(self, library: str) -> None:
        self._chunk = ctypes.CDLL(library).ggml_quantize_chunk
        self._chunk.restype = ctypes.c_size_t
        pointers, sizes = [ctypes.c_void_p, ctypes.c_void_p], [ctypes.c_int64] * 3
        self._chunk.argtypes = [ctypes.c_int, *pointers, *sizes, ctypes.c_void_p]
        version = ctypes.CDLL(library).ggml_version
        version.restype = ctypes.c_char_p
        self.version = version().decode()

    def rounded(self, matrix: np.ndarray, name: str) -> tuple[np.ndarray, int]:
        """A matrix [out, in] as a type of this name makes it, float32, and its bytes."""
        number = next(n for n, kind in TYPES.items() if kind.name == name)
        kind, source = TYPES[number], np.ascontiguousarray(matrix, np.float32)
        if kind.dtype is not None:
            stored = source.astype(kind.dtype)
            return stored.astype(np.float32), stored.nbytes
        rows, columns = source.shape
        raw = np.zeros((rows * columns // kind.block, kind.nbytes), np.uint8)
        self._chunk(number, source.ctypes.data, raw.ctypes.data, 0, rows, columns, None)
        if kind.unpack is None:
            raise ValueError(f"{name} is neither an array's type nor read")
        return kind.unpack(raw).dense().reshape(source.shape), raw.nbytes


def type_of(path: WeightPath, columns: int, config: Config, file: str) -> str:
    """What `llama-quantize` makes of a matrix in a file of this kind, without an imatrix."""
    if columns % 32:
        return "F16"
    wanted = {"Q8_0": "Q8_0", "Q4_0": "Q4_0", "Q4_K_M": "Q4_K"}[file]
    is_output = path == OUTPUT or (path == EMBEDDING and config.tie_embeddings)
    if is_output and file != "Q8_0":
        wanted = "Q6_K"
    elif file == "Q4_K_M" and path[-1] in ("wv", "w2"):
        wanted = "Q6_K" if _has_more_bits(path, config.n_layers) else wanted
    return _FALLBACK.get(wanted, wanted) if columns % 256 else wanted


def _has_more_bits(path: WeightPath, layers: int) -> bool:
    """The first and the last eighth of the layers, and every third between."""
    layer, eighth = int(path[0].removeprefix("layers_")), layers // 8
    return layer < eighth or layer >= math.floor(7 * layers / 8) or (layer - eighth) % 3 == 2
