"""Scales of quantized weights: one an output, or one for each group of inputs of each output.

A weight [in, out] with groups of 32 has scales [in / 32, out]; one with a scale for each output,
"per channel", has scales [out].
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from llama_jax.weights.weight import PartAxis


def group_of(scale: Any, inputs: int) -> int | None:
    """How many neighbouring inputs share a scale; None where all of an output's do."""
    return None if len(scale.shape) == 1 else inputs // scale.shape[0]


def scale_axes(scale: Any, inputs: int) -> tuple[PartAxis, ...]:
    """How the axes of scales, or of minima, follow the weight's."""
    group = group_of(scale, inputs)
    return (PartAxis(1),) if group is None else (PartAxis(0, per=group), PartAxis(1))


def spread(scale: Any, inputs: int) -> Array:
    """Scales in float32, one for each number of the weight: [in, out], or [out] per channel."""
    scale = jnp.asarray(scale).astype(jnp.float32)
    group = group_of(scale, inputs)
    return scale if group is None else jnp.repeat(scale, group, axis=0)


def scales_of_rows(scale: Any, ids: Array, inputs: int) -> Array:
    """The scales, in float32, of the rows with these ids."""
    group = group_of(scale, inputs)
    scale = jnp.asarray(scale)
    return (scale if group is None else scale[ids // group]).astype(jnp.float32)


def check_scales(kind: str, shape: tuple[int, ...], scales: Mapping[str, Any]) -> None:
    """ValueError unless scales, and minima, are floats [out] or [in / group, out] of one shape."""
    inputs, outputs = shape
    found = {name: tuple(scale.shape) for name, scale in scales.items()}
    for name, size in found.items():
        fits = size == (outputs,) or (
            len(size) == 2 and size[1] == outputs and size[0] and inputs % size[0] == 0
        )
        if not fits or size != found["scale"]:
            raise ValueError(
                f"{name} of shape {list(size)} does not fit {kind} numbers of shape "
                f"{list(shape)}; give a scale an output, [{outputs}], or one for each group of "
                f"inputs, [{inputs} / group, {outputs}], and a minimum for each scale"
            )
        if not jnp.issubdtype(scales[name].dtype, jnp.floating):
            raise ValueError(f"{name} is {np.dtype(scales[name].dtype)}; give floating-point ones")
