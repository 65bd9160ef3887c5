"""A cache in pages of 8-bit integers: as `Paged`, in a quarter of float32's memory.

Each key and each value of a token has one scale a head, as in `Int8KVCache`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from llama_jax.config import Config
from llama_jax.kernels import paged_attention
from llama_jax.kernels.paged import Pages, Scales
from llama_jax.model.cache import known_after
from llama_jax.model.cache_protocol import Past, Positions, check_sizes
from llama_jax.model.int8_cache import Int8Slots, decoded, rounded
from llama_jax.model.paged import PAGE, Paged
from llama_jax.ops.attention import NewKeys, Queries
from llama_jax.pytrees import register_dataclass
from llama_jax.sharding.specs import POOL
from llama_jax.weights.table import REPLICATED


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Int8PagedLayer:
    """One layer of an `Int8Paged` cache."""

    past: Pages

    def attend(
        self, q: Queries, k: NewKeys, v: NewKeys, positions: Positions
    ) -> tuple[Queries, Int8Slots]:
        """The step's own keys are rounded before they are read, as the next steps will read them.

        So it does not matter at which token a text was cut into steps.
        """
        step = *rounded(k), *rounded(v)
        own = decoded(*step[:2], k.dtype), decoded(*step[2:], v.dtype)
        return paged_attention(q, *own, self.past, positions[:, 0]), step


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Int8Paged(Paged):
    """As `Paged`, with keys and values of 8 bits."""

    k_scale: tuple[Scales, ...]
    v_scale: tuple[Scales, ...]

    @classmethod
    def empty(cls, config: Config, *, pages: int, rows: int, width: int, dtype: Any) -> Int8Paged:
        """As `Paged.empty`. `dtype` changes nothing."""
        whole = Paged.empty(config, pages=pages, rows=rows, width=width, dtype=jnp.int8)
        shape = (pages, config.n_kv_heads, PAGE)
        k_scale = tuple(jnp.zeros(shape, jnp.float32) for _ in whole.k)
        v_scale = tuple(jnp.zeros(shape, jnp.float32) for _ in whole.v)
        return cls(whole.k, whole.v, whole.table, k_scale, v_scale)

    @classmethod
    def pool_bytes(cls, config: Config, *, pages: int, dtype: Any) -> int:
        """How many bytes so many pages of all layers take."""
        check_sizes(config, pages=pages)
        scales = math.prod((2, config.n_layers, pages, config.n_kv_heads, PAGE))
        return scales * (config.head_dim + 4)

    def specs(self) -> Int8Paged:
        """Pools are cut by key heads over `tensor`; every device has the whole table."""
        cut = jax.tree.map(lambda pool: P(*POOL[: pool.ndim]), self)
        return dataclasses.replace(cut, table=REPLICATED)

    def layer(self, layer: int) -> Past:
        """The past of one layer."""
        scales = self.k_scale[layer], self.v_scale[layer]
        return Int8PagedLayer(Pages(self.k[layer], self.v[layer], self.table, *scales))

    def commit(
        self, steps: Sequence[tuple[Array, ...]], positions: Positions, after: Array
    ) -> Int8Paged:
        """Writes a step's keys, values and scales at `positions`, as `Paged.commit`."""
        write = self._writer(known_after(positions, after))
        pools = self.k, self.k_scale, self.v, self.v_scale
        new = zip(*steps, strict=True)
        k, k_scale, v, v_scale = (
            tuple(map(write, pool, of_layers)) for pool, of_layers in zip(pools, new, strict=True)
        )
        return Int8Paged(k, v, self.table, k_scale, v_scale)
