"""A key-value cache of 8-bit integers: a quarter of float32's memory, half of bfloat16's.

Each key and each value of a token has one scale a head. Nothing is decoded: scores are
`(q @ k8) * k_scale`, and the output is `(weights * v_scale) @ v8`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from llama_jax.config import Config
from llama_jax.kernels import attention
from llama_jax.model.cache import known_after, write_slots
from llama_jax.model.cache_protocol import Past, Positions, check_held, check_sizes
from llama_jax.ops.attention import NewKeys, Queries
from llama_jax.pytrees import register_dataclass
from llama_jax.sharding.specs import CACHE

Int8Slots = tuple[Array, Array, Array, Array]
"""Keys [batch, kv_heads, slots, head_dim], their scales [batch, kv_heads, slots], and the same of
values."""


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Int8KVLayer:
    """One layer of an `Int8KVCache`."""

    stored: Int8Slots
    fresh: bool = dataclasses.field(metadata={"static": True})

    def attend(
        self, q: Queries, k: NewKeys, v: NewKeys, positions: Positions
    ) -> tuple[Queries, Int8Slots]:
        """The step's own keys are rounded before they are read, as the next steps will read them.

        So it does not matter at which token a text was cut into steps.
        """
        (keys, key_scale), (values, value_scale) = rounded(k), rounded(v)
        own = decoded(keys, key_scale, k.dtype), decoded(values, value_scale, v.dtype)
        past = None
        if not self.fresh:
            past = (*self.stored[::2], *self.stored[1::2])
        out = attention(q, *own, past, positions[:, 0])
        step = (keys, key_scale, values, value_scale)
        return out, tuple(part.swapaxes(1, 2) for part in step)  # type: ignore[return-value]


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Int8KVCache:
    """As `KVCache`, with keys and values of 8 bits: `generate(..., cache=Int8KVCache)`."""

    layers: tuple[Int8Slots, ...]
    fresh: bool = dataclasses.field(default=False, metadata={"static": True})

    @classmethod
    def empty(cls, config: Config, *, batch: int, slots: int, dtype: Any) -> Int8KVCache:
        """A cache for `batch` rows of up to `slots` positions. `dtype` changes nothing."""
        check_sizes(config, batch=batch, slots=slots)
        heads = (batch, config.n_kv_heads, slots)

        def zeros() -> tuple[Array, Array]:
            # Each array its own allocation: one buffer given twice cannot be donated.
            return jnp.zeros((*heads, config.head_dim), jnp.int8), jnp.zeros(heads, jnp.float32)

        return cls(tuple((*zeros(), *zeros()) for _ in range(config.n_layers)), fresh=True)

    @classmethod
    def bytes(cls, config: Config, *, batch: int, slots: int, dtype: Any) -> int:
        """How many bytes the keys and values of so many rows and positions take."""
        check_sizes(config, batch=batch, slots=slots)
        scales = math.prod((2, config.n_layers, batch, config.n_kv_heads, slots))
        return scales * (config.head_dim + 4)

    def check(self, config: Config, rows: int) -> None:
        """ValueError unless it was made for this config and so many rows."""
        shape = (rows, config.n_kv_heads, None, config.head_dim)
        way_out = f"make it by Int8KVCache.empty(params.config, batch={rows}, slots=..., dtype=...)"
        check_held(self, [layer[::2] for layer in self.layers], config.n_layers, shape, way_out)

    @property
    def slots(self) -> int:
        """How many positions a row has room for."""
        return self.layers[0][0].shape[2]

    def fits(self, positions: Int[Array, " batch"]) -> Bool[Array, " batch"]:
        """Which rows have room for a token at these positions."""
        return positions < self.slots

    def grown(self, slots: int) -> Int8KVCache:
        """The same past with room for `slots` positions."""

        def grow(x: Array) -> Array:
            more = (0, slots - self.slots)
            return jnp.pad(x, [(0, 0), (0, 0), more, (0, 0)][: x.ndim])

        return jax.tree.map(grow, self)

    def continued(self) -> Int8KVCache:
        """The same cache, no longer fresh."""
        return dataclasses.replace(self, fresh=False)

    def specs(self) -> Int8KVCache:
        """Rows lie over `data` and `fsdp`, key heads over `tensor`."""
        return jax.tree.map(lambda x: P(*CACHE[: len(x.shape)]), self)

    def layer(self, layer: int) -> Past:
        """The past of one layer."""
        return Int8KVLayer(self.layers[layer], self.fresh)

    def commit(self, steps: Sequence[Int8Slots], positions: Positions, after: Array) -> Int8KVCache:
        """Writes a step's keys and values at `positions`; those beyond the slots are dropped."""
        positions = known_after(positions, after)
        layers = jax.tree.map(
            lambda old, new: write_slots(old, new, positions), self.layers, tuple(steps)
        )
        return Int8KVCache(layers)


def rounded(
    x: Float[Array, "*some head_dim"],
) -> tuple[Int[Array, "*some head_dim"], Float[Array, "*some"]]:
    """Keys, or values, as integers of 8 bits, and the scale of each."""
    x = x.astype(jnp.float32)
    scale = jnp.maximum(jnp.abs(x).max(axis=-1) / 127, 1e-30)
    return jnp.round(x / scale[..., None]).astype(jnp.int8), scale


def decoded(values: Array, scale: Array, dtype: Any) -> Array:
    """What `rounded` keeps of keys or values."""
    return (values.astype(jnp.float32) * scale[..., None]).astype(dtype)
