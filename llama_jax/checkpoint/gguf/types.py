"""The number formats of a GGUF file's tensors, by ggml's numbers for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from llama_jax.checkpoint.gguf import unpack
from llama_jax.checkpoint.gguf.unpack import Unpacked


class GGUFType(NamedTuple):
    """How numbers lie in a tensor: so many in a block of so many bytes."""

    name: str
    block: int
    nbytes: int
    dtype: Any = None
    """The dtype of numbers that lie as they are; None where they are quantized."""
    unpack: Callable[[np.ndarray], Unpacked] | None = None
    """Takes a quantized type's bytes, uint8 [blocks, nbytes], apart; None for any other type."""


F32 = GGUFType("F32", 1, 4, np.float32)
TYPES = {
    0: F32,
    1: GGUFType("F16", 1, 2, np.float16),
    30: GGUFType("BF16", 1, 2, ml_dtypes.bfloat16),
    2: GGUFType("Q4_0", 32, 18, unpack=unpack.unpack_q4_0),
    3: GGUFType("Q4_1", 32, 20, unpack=unpack.unpack_q4_1),
    6: GGUFType("Q5_0", 32, 22, unpack=unpack.unpack_q5_0),
    7: GGUFType("Q5_1", 32, 24, unpack=unpack.unpack_q5_1),
    8: GGUFType("Q8_0", 32, 34, unpack=unpack.unpack_q8_0),
    10: GGUFType("Q2_K", 256, 84, unpack=unpack.unpack_q2_k),
    11: GGUFType("Q3_K", 256, 110, unpack=unpack.unpack_q3_k),
    12: GGUFType("Q4_K", 256, 144, unpack=unpack.unpack_q4_k),
    13: GGUFType("Q5_K", 256, 176, unpack=unpack.unpack_q5_k),
    14: GGUFType("Q6_K", 256, 210, unpack=unpack.unpack_q6_k),
    20: GGUFType("IQ4_NL", 32, 18, unpack=unpack.unpack_iq4_nl),
    23: GGUFType("IQ4_XS", 256, 136, unpack=unpack.unpack_iq4_xs),
}
NOT_READ = {
    **{4: "Q4_2", 5: "Q4_3", 9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS"},
    **{19: "IQ1_S", 21: "IQ3_S", 22: "IQ2_S", 24: "I8", 25: "I16", 26: "I32", 27: "I64"},
    **{28: "F64", 29: "IQ1_M", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8", 34: "TQ1_0"},
    **{35: "TQ2_0", 36: "IQ4_NL_4_4", 37: "IQ4_NL_4_8", 38: "IQ4_NL_8_8", 39: "MXFP4"},
}
"""What other types are called."""
