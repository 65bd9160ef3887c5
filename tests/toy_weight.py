"""A small kind of weight, for the tests of what takes any kind."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from llama_jax.pytrees import register_dataclass
from llama_jax.weights.weight import PartAxis

GROUP = 8


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Scaled:
    """A toy: int8 values [in, out] and a scale for each 8 inputs of each output, [in / 8, out]."""

    kind = "toy-scaled"

    values: jax.Array
    scale: jax.Array
    dtype: np.dtype = dataclasses.field(metadata={"static": True})

    @property
    def shape(self):
        return self.values.shape

    def matmul(self, x):
        return (x @ self.dense().astype(x.dtype)).astype(x.dtype)

    def matmul_transposed(self, x):
        return (x @ self.dense().astype(x.dtype).T).astype(x.dtype)

    def rows(self, ids):
        return self.dense()[ids].astype(self.dtype)

    def dense(self):
        return self.values * jnp.repeat(jnp.asarray(self.scale), GROUP, axis=0)

    def parts(self):
        return {"values": self.values, "scale": self.scale}

    def layout(self):
        return {
            "values": (PartAxis(0), PartAxis(1)),
            "scale": (PartAxis(0, per=GROUP), PartAxis(1)),
        }

    def constants(self):
        return {"group": GROUP}

    @classmethod
    def from_parts(cls, parts, constants, dtype):
        if constants != {"group": GROUP}:
            raise ValueError(f"group={constants.get('group')} is not {GROUP}")
        return cls(parts["values"], parts["scale"], np.dtype(dtype))

    @classmethod
    def of(cls, array):
        """An array, rounded to values and scales."""
        groups = np.asarray(array).reshape(-1, GROUP, array.shape[1])
        scale = np.maximum(np.abs(groups).max(axis=1) / 127, 1e-9).astype(np.float32)
        values = np.round(groups / scale[:, None]).astype(np.int8)
        return cls(jnp.asarray(values.reshape(array.shape)), jnp.asarray(scale), array.dtype)
