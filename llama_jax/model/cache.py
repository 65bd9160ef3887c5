"""Key-value caches. A cache attends over what it holds, so the model never sees its layout.

A cache of 2 rows and 256 slots holds, for each layer, keys and values [2, n_kv_heads, 256,
head_dim]. The key and the value of position p lie in slot p.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Protocol, Self

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from llama_jax.config import Config
from llama_jax.kernels import attention, causal_attention
from llama_jax.ops.attention import NewKeys, Queries, Slots
from llama_jax.sharding.specs import CACHE

Positions = Int[Array, "batch time"]


class Past(Protocol):
    """One layer of a cache. Every layer has one pytree structure, so a block is traced once."""

    def attend(
        self, q: Queries, k: NewKeys, v: NewKeys, positions: Positions
    ) -> tuple[Queries, Any]:
        """Attention of `q` over the cached keys and values and the step's own `k` and `v`.

        Returns the output [batch, time, heads, head_dim], and a value that `commit` stores.
        Positions ascend by one along time.
        """
        ...


class ModelCache(Protocol):
    """The cache interface of `forward`, a pytree. `Uncached` implements it and stores nothing."""

    def layer(self, layer: int) -> Past:
        """The past of one layer."""
        ...

    def commit(self, steps: Sequence[Any], positions: Positions, after: Array) -> Self:
        """The cache with every layer's new keys and values, written at `positions`.

        `after` is the last layer's output: the writes wait for it, so they follow every read.
        """
        ...


class Cache(ModelCache, Protocol):
    """The cache interface of generation: a contiguous, paged or quantized cache implements it.

    Nothing outside this file reads a cache's arrays. A step may begin at any position up to the
    past's end: what the cache holds there and above is of another text, and no longer counts. So a
    conversation whose dialog was changed goes back to where the two texts part.
    """

    @classmethod
    def empty(cls, config: Config, *, batch: int, slots: int, dtype: Any) -> Self:
        """A cache for `batch` rows of up to `slots` positions."""
        ...

    @classmethod
    def bytes(cls, config: Config, *, batch: int, slots: int, dtype: Any) -> int:
        """The bytes of `empty(...)` with these arguments."""
        ...

    @property
    def fresh(self) -> bool:
        """True until the first `commit`: the first step then reads no slots. Static."""
        ...

    @property
    def slots(self) -> int:
        """How many positions a row has room for. Static."""
        ...

    def fits(self, positions: Int[Array, " batch"]) -> Bool[Array, " batch"]:
        """Which rows have room for a token at these positions."""
        ...

    def grown(self, slots: int) -> Self:
        """The same past with room for `slots` positions a row."""
        ...

    def continued(self) -> Self:
        """The cache with `fresh=False`: one program then serves empty and filled caches."""
        ...

    def specs(self) -> Any:
        """How its arrays are sharded: the same pytree with a `PartitionSpec` for each."""
        ...


@jax.tree_util.register_dataclass
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


@jax.tree_util.register_dataclass
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


@jax.tree_util.register_dataclass
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


@jax.tree_util.register_dataclass
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
        shape = (batch, config.n_kv_heads, slots, config.head_dim)
        # Each array its own allocation: one buffer given twice cannot be donated.
        k = tuple(jnp.zeros(shape, dtype) for _ in range(config.n_layers))
        v = tuple(jnp.zeros(shape, dtype) for _ in range(config.n_layers))
        return cls(k, v, fresh=True)

    @classmethod
    def bytes(cls, config: Config, *, batch: int, slots: int, dtype: Any) -> int:
        """How many bytes the keys and values of so many rows and positions take."""
        shape = (batch, config.n_kv_heads, slots, config.head_dim)
        return 2 * config.n_layers * math.prod(shape) * jnp.dtype(dtype).itemsize

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

    def layer(self, layer: int) -> KVLayer:
        """The past of one layer."""
        return KVLayer(self.k[layer], self.v[layer], self.fresh)

    def commit(
        self, steps: Sequence[tuple[Array, Array]], positions: Positions, after: Array
    ) -> KVCache:
        """Writes a step's keys and values at `positions`; those beyond the slots are dropped.

        All layers have read by then. If one were to read a buffer after another wrote it, XLA
        would copy the buffer.
        """
        positions = _known_after(positions, after)
        k = tuple(_write(old, new, positions) for old, (new, _) in zip(self.k, steps, strict=True))
        v = tuple(_write(old, new, positions) for old, (_, new) in zip(self.v, steps, strict=True))
        return KVCache(k, v)


@jax.jit  # traced and lowered once, not twice a layer
def _write(
    slots: Slots, new: Float[Array, "batch kv_heads time head_dim"], positions: Positions
) -> Slots:
    def write(slots: Array, new: Array, positions: Array) -> Array:
        return slots.at[positions].set(new, mode="drop", unique_indices=True)

    # Row by row and head by head, so that XLA sees that both stay where they are when they are
    # cut. XLA for a GPU turns a cache around to write all heads of a position at once.
    places = jnp.broadcast_to(positions[:, None], new.shape[:3])
    return jax.vmap(jax.vmap(write))(slots, new.astype(slots.dtype), places)


def _known_after(positions: Positions, after: Array) -> Positions:
    """`positions`, with a data dependency on `after`.

    So every write follows the last read of the cache and happens in place. `x > inf` is false for
    every number, NaN included, but XLA does not fold it.
    """
    never = after[:, :1, 0] > jnp.inf
    return jnp.where(never, 0, positions)
