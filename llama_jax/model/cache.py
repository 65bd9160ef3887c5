"""Key-value caches. A cache attends over what it holds, so the model never sees its layout.

A cache of 2 rows and 256 slots holds, for each layer, keys and values [2, n_kv_heads, 256,
head_dim]. The key and the value of position p lie in slot p.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from llama_jax.config import Config
from llama_jax.field_docs import with_field_docs
from llama_jax.kernels import attention, causal_attention
from llama_jax.model.cache_protocol import Cache as Cache
from llama_jax.model.cache_protocol import ModelCache as ModelCache
from llama_jax.model.cache_protocol import Past as Past
from llama_jax.model.cache_protocol import Positions as Positions
from llama_jax.model.cache_protocol import check_floating, check_held, check_sizes
from llama_jax.ops.attention import NewKeys, Queries, Slots
from llama_jax.pytrees import register_dataclass
from llama_jax.sharding.specs import CACHE


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Uncached:
    """No past: each call sees its own tokens alone, as in training."""

    def layer(self, layer: int) -> Uncached:
        return self

    def attend(
        self, q: Queries, k: NewKeys, v: NewKeys, positions: Positions
    ) -> tuple[Queries, None]:
        return causal_attention(q, k, v), None

    def commit(self, steps: Sequence[None], positions: Positions, after: Array) -> Uncached:
        return self


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Packed:
    """No past, and rows of several documents, whose positions restart at 0 with each.

    Positions [0, 1, 2, 0, 1] are a document of three tokens and one of two. The query at index t
    sees the keys from index `t - positions[t]`, which are those of its own document.
    """

    def layer(self, layer: int) -> Packed:
        return self

    def attend(
        self, q: Queries, k: NewKeys, v: NewKeys, positions: Positions
    ) -> tuple[Queries, None]:
        first = jnp.arange(positions.shape[1]) - positions
        return causal_attention(q, k, v, first), None

    def commit(self, steps: Sequence[None], positions: Positions, after: Array) -> Packed:
        return self


@register_dataclass
@dataclasses.dataclass(frozen=True)
class KVLayer:
    """One layer of a `KVCache`."""

    k: Slots
    v: Slots
    fresh: bool = dataclasses.field(metadata={"static": True})

    def attend(
        self, q: Queries, k: NewKeys, v: NewKeys, positions: Positions
    ) -> tuple[Queries, tuple[Array, Array]]:
        past = None if self.fresh else (self.k, self.v)
        out = attention(q, k, v, past, positions[:, 0])
        return out, (k.swapaxes(1, 2), v.swapaxes(1, 2))


@with_field_docs
@register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """A contiguous cache: the key and value of position p lie in slot p of their row.

    A query sees the slots below its step's first position, and the step's own keys. Nothing reads
    the slots above. So prompts are padded on the right, with any ids, and no length is stored.
    """

    k: tuple[Slots, ...]
    """One array per layer. This order of axes needs no transpose in attention, on CPU or GPU."""
    v: tuple[Slots, ...]
    fresh: bool = dataclasses.field(default=False, metadata={"static": True})

    @classmethod
    def empty(cls, config: Config, *, batch: int, slots: int, dtype: Any) -> KVCache:
        """A cache for `batch` rows of up to `slots` positions.

        `dtype` may be wider than the activations'. On a CPU use float32: XLA rewrites the whole of
        a 16-bit cache at every step.
        """
        check_sizes(config, batch=batch, slots=slots)
        check_floating(dtype)
        shape = (batch, config.n_kv_heads, slots, config.head_dim)
        # Each array its own allocation: one buffer given twice cannot be donated.
        k = tuple(jnp.zeros(shape, dtype) for _ in range(config.n_layers))
        v = tuple(jnp.zeros(shape, dtype) for _ in range(config.n_layers))
        return cls(k, v, fresh=True)

    @classmethod
    def bytes(cls, config: Config, *, batch: int, slots: int, dtype: Any) -> int:
        """How many bytes the keys and values of so many rows and positions take."""
        check_sizes(config, batch=batch, slots=slots)
        shape = (batch, config.n_kv_heads, slots, config.head_dim)
        return 2 * config.n_layers * math.prod(shape) * jnp.dtype(dtype).itemsize

    def check(self, config: Config, rows: int) -> None:
        """ValueError unless it was made for this config and so many rows."""
        shape = (rows, config.n_kv_heads, None, config.head_dim)
        way_out = f"make it by KVCache.empty(params.config, batch={rows}, slots=..., dtype=...)"
        check_held(self, (self.k, self.v), config.n_layers, shape, way_out)

    @property
    def slots(self) -> int:
        """How many positions a row has room for."""
        return self.k[0].shape[2]

    def fits(self, positions: Int[Array, " batch"]) -> Bool[Array, " batch"]:
        """Which rows have room for a token at these positions."""
        return positions < self.slots

    def grown(self, slots: int) -> KVCache:
        """The same past with room for `slots` positions."""
        more = ((0, 0), (0, 0), (0, slots - self.slots), (0, 0))
        grow = lambda x: jnp.pad(x, more)  # noqa: E731
        return dataclasses.replace(self, k=tuple(map(grow, self.k)), v=tuple(map(grow, self.v)))

    def continued(self) -> KVCache:
        """The same cache, no longer fresh."""
        return dataclasses.replace(self, fresh=False)

    def specs(self) -> KVCache:
        """Every array is sharded alike: rows over `data` and `fsdp`, key heads over `tensor`."""
        return jax.tree.map(lambda _: CACHE, self)

    def layer(self, layer: int) -> Past:
        """The past of one layer."""
        return KVLayer(self.k[layer], self.v[layer], self.fresh)

    def commit(
        self, steps: Sequence[tuple[Array, Array]], positions: Positions, after: Array
    ) -> KVCache:
        """Writes a step's keys and values at `positions`; those beyond the slots are dropped.

        All layers have read by then. If one were to read a buffer after another wrote it, XLA
        would copy the buffer.
        """
        positions = known_after(positions, after)
        keys, values = zip(*steps, strict=True)
        write = functools.partial(write_slots, positions=positions)
        return KVCache(tuple(map(write, self.k, keys)), tuple(map(write, self.v, values)))


@jax.jit  # traced and lowered once, not twice a layer
def write_slots(slots: Array, new: Array, positions: Positions) -> Array:
    """`slots` [batch, kv_heads, slots, ...] with `new` [batch, kv_heads, time, ...] at positions.

    What lies beyond the slots is dropped.
    """

    def write(slots: Array, new: Array, positions: Array) -> Array:
        return slots.at[positions].set(new, mode="drop", unique_indices=True)

    # Row by row and head by head, so that XLA sees that both stay where they are when they are
    # cut. XLA for a GPU turns a cache around to write all heads of a position at once.
    places = jax.lax.broadcast_in_dim(positions, new.shape[:3], (0, 2))
    return jax.vmap(jax.vmap(write))(slots, new.astype(slots.dtype), places)


def known_after(positions: Positions, after: Array) -> Positions:
    """`positions`, with a data dependency on `after`.

    So every write follows the last read of the cache and happens in place. `x > inf` is false for
    every number, NaN included, but XLA does not fold it.
    """
    never = after[:, :1, 0] > jnp.inf
    return jnp.where(never, 0, positions)
