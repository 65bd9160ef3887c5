"""The dtypes a weight may have."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

DTYPES = {name: np.dtype(getattr(jnp, name)) for name in ("float32", "bfloat16", "float16")}
_SHORT = {
    "fp32": "float32",
    "f32": "float32",
    "bf16": "bfloat16",
    "fp16": "float16",
    "f16": "float16",
}


def parse_dtype(dtype: Any) -> np.dtype:
    """A weight's dtype from its name ("bfloat16", "bf16") or from a JAX or NumPy dtype."""
    try:
        found = np.dtype(DTYPES[_SHORT.get(dtype, dtype)] if isinstance(dtype, str) else dtype)
    except (KeyError, TypeError):
        found = None
    if found is None or found not in DTYPES.values():
        raise ValueError(
            f"dtype={dtype!r} is not a number format of weights; use one of {', '.join(DTYPES)}"
        )
    return found
