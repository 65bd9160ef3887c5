"""Keys and values of the past, as values that know how to attend."""

from __future__ import annotations

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from llama_jax.config import Config
from llama_jax.kernels import NewKeys, Queries, Slots, fastest_attention
from llama_jax.ops.attention import Own, Span, attention
from llama_jax.ops.slots import write

Positions = Int[Array, "batch time"]


class Cache(Protocol):
    """What the model asks of a cache; paged or contiguous, it does not learn."""

    def attend(
        self, layer: int, q: Queries, k: NewKeys, v: NewKeys, positions: Positions
    ) -> tuple[Queries, Cache]:
        """What the queries of `layer` read from the past and from this step's own keys and values.

        Positions ascend by one along time. The cache returned remembers `k` and `v`.
        """
        ...

    def commit(self, positions: Positions, after: Array) -> Cache:
        """Stores what every layer's `attend` remembered, once `after` is known."""
        ...


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Uncached:
    """No past and no future: each call sees its own tokens alone."""

    def attend(
        self, layer: int, q: Queries, k: NewKeys, v: NewKeys, positions: Positions
    ) -> tuple[Queries, Uncached]:
        plain = lambda: attention(q, [_own(k, v)])  # noqa: E731
        return fastest_attention(q, k, v, None, positions[:, 0], otherwise=plain), self

    def commit(self, positions: Positions, after: Array) -> Uncached:
        return self


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
    step: tuple[tuple[Array, Array], ...] = ()
    """The running step's keys and values, a pair per layer, until `commit`. A step that wrote a
    buffer and then read it would make XLA copy the whole cache."""
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

    def attend(
        self, layer: int, q: Queries, k: NewKeys, v: NewKeys, positions: Positions
    ) -> tuple[Queries, KVCache]:
        own = _own(k, v)
        spans: list[Span | Own] = [own]
        if not self.fresh:
            slots = jnp.arange(self.slots)[None]
            spans = [Span(self.k[layer], self.v[layer], slots, positions[:, :1] - 1), own]
        past = None if self.fresh else (self.k[layer], self.v[layer])
        plain = lambda: attention(q, spans)  # noqa: E731
        out = fastest_attention(q, k, v, past, positions[:, 0], otherwise=plain)
        return out, dataclasses.replace(self, step=(*self.step, (own.k, own.v)))

    def commit(self, positions: Positions, after: Array) -> KVCache:
        """Writes the step's keys and values at `positions`; those beyond the slots are dropped."""
        k, v = zip(*self.step, strict=True)
        written = write(self.k + self.v, k + v, _known_after(positions, after))
        layers = len(self.k)
        return KVCache(written[:layers], written[layers:])


def _own(k: NewKeys, v: NewKeys) -> Own:
    heads_first = (0, 2, 1, 3)
    return Own(k.transpose(heads_first), v.transpose(heads_first))


def _known_after(positions: Positions, after: Array) -> Positions:
    """`positions`, in a form that XLA cannot compute before `after`.

    It keeps every write behind the last read of the cache, and so in place. A comparison with
    infinity is false for every number, NaN included, and XLA does not fold it away.
    """
    never = after[:, :1, 0] > jnp.inf
    return jnp.where(never, 0, positions)
