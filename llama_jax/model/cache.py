"""Keys and values of the past, as values that know how to attend."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from llama_jax.config import Config
from llama_jax.kernels import NewKeys, Queries, fastest_attention
from llama_jax.ops.attention import Slots

Positions = Int[Array, "batch time"]


class Past(Protocol):
    """One layer of a cache, alike for every layer but for its arrays."""

    def attend(
        self, q: Queries, k: NewKeys, v: NewKeys, positions: Positions
    ) -> tuple[Queries, Any]:
        """What the queries read from the past and from this step's own keys and values.

        Positions ascend by one along time. Beside it comes what `commit` is to be given.
        """
        ...


class Cache(Protocol):
    """What the model asks of a cache; paged or contiguous, it does not learn."""

    def layer(self, layer: int) -> Past: ...

    def commit(self, steps: Sequence[Any], positions: Positions, after: Array) -> Cache:
        """Stores what every layer's `attend` gave to be remembered, once `after` is known."""
        ...


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Uncached:
    """No past and no future: each call sees its own tokens alone."""

    def layer(self, layer: int) -> Uncached:
        return self

    def attend(
        self, q: Queries, k: NewKeys, v: NewKeys, positions: Positions
    ) -> tuple[Queries, None]:
        return fastest_attention(q, k, v, None, positions[:, 0]), None

    def commit(self, steps: Sequence[None], positions: Positions, after: Array) -> Uncached:
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
        out = fastest_attention(q, k, v, past, positions[:, 0])
        return out, (k.swapaxes(1, 2), v.swapaxes(1, 2))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """A contiguous cache: the key and value of position p lie in slot p, row by row.

    Slots above a row's position hold leftovers that nothing reads: a query sees slots below its
    step's first position and the step's own keys. So prompts are padded on the right, with
    anything, and no length is stored.
    """

    k: tuple[Slots, ...]
    """One array per layer. This order of axes needs no transpose in attention, on CPU or GPU."""
    v: tuple[Slots, ...]
    fresh: bool = dataclasses.field(default=False, metadata={"static": True})
    """Whether nothing was ever committed, so that a prompt's first step reads no slot at all."""

    @classmethod
    def empty(cls, config: Config, *, batch: int, slots: int, dtype: jnp.dtype) -> KVCache:
        """A cache for `batch` rows of up to `slots` positions.

        It may be wider than the activations: on a CPU a 16-bit cache can cost a pass over all of
        it at every step.
        """
        shape = (batch, config.n_kv_heads, slots, config.head_dim)
        # Each array its own allocation: one buffer given twice cannot be donated.
        k = tuple(jnp.zeros(shape, dtype) for _ in range(config.n_layers))
        v = tuple(jnp.zeros(shape, dtype) for _ in range(config.n_layers))
        return cls(k, v, fresh=True)

    @property
    def slots(self) -> int:
        return self.k[0].shape[2]

    def grown(self, slots: int) -> KVCache:
        """The same past with room for `slots` positions."""
        more = ((0, 0), (0, 0), (0, slots - self.slots), (0, 0))
        grow = lambda x: jnp.pad(x, more)  # noqa: E731
        return dataclasses.replace(self, k=tuple(map(grow, self.k)), v=tuple(map(grow, self.v)))

    def layer(self, layer: int) -> KVLayer:
        return KVLayer(self.k[layer], self.v[layer], self.fresh)

    def commit(
        self, steps: Sequence[tuple[Array, Array]], positions: Positions, after: Array
    ) -> KVCache:
        """Writes a step's keys and values at `positions`; those beyond the slots are dropped.

        After all layers have read: a buffer that was written and then read, XLA would copy whole.
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
        return slots.at[:, positions].set(new, mode="drop", unique_indices=True)

    # Row by row, so that XLA sees rows stay where they are when the batch is cut.
    return jax.vmap(write)(slots, new.astype(slots.dtype), positions)


def _known_after(positions: Positions, after: Array) -> Positions:
    """`positions`, in a form that XLA cannot compute before `after`.

    It keeps every write behind the last read of the cache, and so in place. A comparison with
    infinity is false for every number, NaN included, and XLA does not fold it away.
    """
    never = after[:, :1, 0] > jnp.inf
    return jnp.where(never, 0, positions)
