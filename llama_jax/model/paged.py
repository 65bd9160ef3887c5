"""A cache in pages, for a server: rows of any length share one pool, and may share pages.

With PAGE = 64, the key of position 130 of row 2 is number 2 of page `table[2, 2]`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Int

from llama_jax.config import Config
from llama_jax.field_docs import with_field_docs
from llama_jax.kernels import paged_attention
from llama_jax.kernels.paged import Pages, Pool, Table
from llama_jax.model.cache import known_after
from llama_jax.model.cache_protocol import Past, Positions, check_held, check_sizes
from llama_jax.ops.attention import NewKeys, Queries
from llama_jax.pytrees import register_dataclass
from llama_jax.sharding.arrays import per_device
from llama_jax.sharding.specs import POOL
from llama_jax.weights.table import REPLICATED

PAGE = 64
"""Positions of a page: the block that a GPU's decode kernel reads at once."""


@register_dataclass
@dataclasses.dataclass(frozen=True)
class PagedLayer:
    """One layer of a `Paged` cache."""

    past: Pages

    def attend(
        self, q: Queries, k: NewKeys, v: NewKeys, positions: Positions
    ) -> tuple[Queries, tuple[Array, Array]]:
        """A row's past is the positions below the step's first; they lie in the row's pages."""
        return paged_attention(q, k, v, self.past, positions[:, 0]), (k, v)


@with_field_docs
@register_dataclass
@dataclasses.dataclass(frozen=True)
class Paged:
    """A pool of pages for each layer, and a table of the pages of each row.

    The host says which pages a row has: `cache.with_table(table)`. A page belongs to several rows
    where their texts begin alike; such a page is full, so that nothing is written to it.
    """

    k: tuple[Pool, ...]
    """One array [pages, n_kv_heads, PAGE, head_dim] per layer."""
    v: tuple[Pool, ...]
    table: Table
    """The page of position p of a row is `table[row, p // PAGE]`. It is `pages` where there is
    none: what is written there is dropped."""

    @classmethod
    def empty(cls, config: Config, *, pages: int, rows: int, width: int, dtype: Any) -> Paged:
        """`pages` pages, and a table of `rows` rows of `width` pages in which no row has any."""
        check_sizes(config, pages=pages, rows=rows, width=width)
        shape = (pages, config.n_kv_heads, PAGE, config.head_dim)
        # Each array its own allocation: one buffer given twice cannot be donated.
        k = tuple(jnp.zeros(shape, dtype) for _ in range(config.n_layers))
        v = tuple(jnp.zeros(shape, dtype) for _ in range(config.n_layers))
        return cls(k, v, jnp.full((rows, width), pages, jnp.int32))

    @classmethod
    def pool_bytes(cls, config: Config, *, pages: int, dtype: Any) -> int:
        """How many bytes so many pages of all layers take."""
        check_sizes(config, pages=pages)
        shape = (pages, config.n_kv_heads, PAGE, config.head_dim)
        return 2 * config.n_layers * math.prod(shape) * jnp.dtype(dtype).itemsize

    def check(self, config: Config, rows: int) -> None:
        """ValueError unless it was made for this config, and its table for so many rows."""
        shape = (None, config.n_kv_heads, PAGE, config.head_dim)
        way_out = f"make it by {type(self).__name__}.empty(params.config, ...)"
        check_held(self, (self.k, self.v), config.n_layers, shape, way_out)
        if self.table.shape[0] != rows:
            raise ValueError(
                f"cache is a {type(self).__name__} whose table has {self.table.shape[0]} rows, and "
                f"tokens have {rows}; pass cache.with_table(table) with a row for each"
            )

    @property
    def pages(self) -> int:
        """How many pages there are."""
        return self.k[0].shape[0]

    @property
    def slots(self) -> int:
        """How many positions a row of the table has room for."""
        return self.table.shape[1] * PAGE

    @property
    def fresh(self) -> bool:
        """Always false: which rows have a past is traced."""
        return False

    def continued(self) -> Paged:
        """The same cache."""
        return self

    def fits(self, positions: Int[Array, " batch"]) -> Bool[Array, " batch"]:
        """Which rows have a page for a token at these positions."""
        return self._pages_of(positions[:, None])[:, 0] < self.pages

    def with_table(self, table: Table) -> Paged:
        """The same pages with another table: the pages of each row of a call."""
        return dataclasses.replace(self, table=table)

    def cleared(self, pages: Int[Array, " n"]) -> Paged:
        """The same pools, with zeros in these pages. A number beyond the pool is no page."""
        cleared = jax.tree.map(lambda pool: pool.at[pages].set(0, mode="drop"), self._pools)
        return dataclasses.replace(cleared, table=self.table)

    def is_finite(self, pages: Int[Array, " n"]) -> Bool[Array, ""]:
        """Whether these pages are free of NaN and infinity, in every layer."""
        held = [x.at[pages].get(mode="fill", fill_value=0) for x in jax.tree.leaves(self._pools)]
        return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in held]))

    @property
    def _pools(self) -> Any:
        """The cache without its table: the arrays of which each page is a part."""
        return dataclasses.replace(self, table=None)  # type: ignore[arg-type]

    def specs(self) -> Paged:
        """Pools are cut by key heads over `tensor`; every device has the whole table."""
        pools: Any = (POOL,) * len(self.k)
        return Paged(pools, pools, REPLICATED)  # type: ignore[arg-type]  # a spec for each array

    def layer(self, layer: int) -> Past:
        """The past of one layer."""
        return PagedLayer(Pages(self.k[layer], self.v[layer], self.table))

    def commit(
        self, steps: Sequence[tuple[Array, ...]], positions: Positions, after: Array
    ) -> Paged:
        """Writes a step's keys and values in place at `positions`; without a page they are dropped.

        All layers have read by then, as `KVCache.commit` says.
        """
        positions = known_after(positions, after)
        keys, values = zip(*steps, strict=True)
        write = self._writer(positions)
        return Paged(tuple(map(write, self.k, keys)), tuple(map(write, self.v, values)), self.table)

    def _writer(self, positions: Positions) -> Callable[[Array, Array], Array]:
        """A function that writes a step's keys, or their scales, into a pool at these positions."""
        page = self._pages_of(positions)
        return functools.partial(write_pages, page=page, place=positions % PAGE)

    def _pages_of(self, positions: Positions) -> Int[Array, "batch time"]:
        """The page of each position; `pages` where there is none."""
        rows = jnp.arange(len(positions))[:, None]
        return self.table.at[rows, positions // PAGE].get(mode="fill", fill_value=self.pages)


@jax.jit  # traced and lowered once, not twice a layer
def write_pages(
    pool: Array, new: Array, page: Int[Array, "batch time"], place: Int[Array, "batch time"]
) -> Array:
    """`pool` [pages, kv_heads, page, ...] with `new` [batch, time, kv_heads, ...] at these places.

    No two keys may have one place. What has no page is dropped.
    """

    def write(pool: Array, new: Array, page: Array, place: Array) -> Array:
        # Every leading axis is indexed, so XLA for a GPU need not turn the pool around.
        heads = jnp.arange(pool.shape[1])
        at = pool.at[page[:, :, None], heads, place[:, :, None]]
        return at.set(new, mode="drop", unique_indices=True)

    pools, news = P(*POOL[: pool.ndim]), P(None, None, "tensor", *[None] * (new.ndim - 3))
    specs = (pools, news, REPLICATED, REPLICATED)
    return per_device(write, specs, pools)(pool, new.astype(pool.dtype), page, place)
