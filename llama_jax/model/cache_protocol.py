"""What the model and generation ask of a cache, as protocols."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, Self, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from llama_jax.config import Config
from llama_jax.ops.attention import NewKeys, Queries
from llama_jax.validation import check_count, wrong_kind

Positions = Int[Array, "batch time"]
"""The place of each token in its text, from 0."""


class Past(Protocol):
    """One layer of a cache. Every layer has one pytree structure, so a block is traced once.

    To inspect attention, give `block` a past of your own that attends as `Uncached` does and
    returns, as its step, what you want to see: `examples/look_inside.py` does. What a cache holds
    is in its arrays: `cache.layer(0).k` of a `KVCache` is [batch, n_kv_heads, slots, head_dim].
    """

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


@runtime_checkable
class Checked(Protocol):
    """An optional part of a cache. Every cache of ours that stores something has it."""

    def check(self, config: Config, rows: int) -> None:
        """ValueError if the cache was made for another model or number of rows.

        `forward` calls it before anything is computed.
        """
        ...


class Cache(ModelCache, Protocol):
    """The cache interface of generation: `KVCache` and `Int8KVCache` implement it.

    `Paged` is a `ModelCache` that the server makes and fills, and has no `grown`.

    Only a cache's own file reads its arrays. A step may begin at any position up to
    the past's end: the slots there and above then no longer count. So a conversation whose dialog
    was changed goes back to where the two texts part.
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


def check_sizes(config: Any, **sizes: Any) -> None:
    """What `empty` is given: WrongKindError unless a Config, ValueError unless positive numbers."""
    if not isinstance(config, Config):
        raise wrong_kind("config", config, "pass a Config, such as params.config")
    for name, size in sizes.items():
        check_count(name, int(size) if isinstance(size, np.integer) else size)


def check_floating(dtype: Any) -> None:
    """ValueError unless keys and values can be held in this dtype."""
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            f"dtype={jnp.dtype(dtype).name} would cut keys and values to whole numbers; pass "
            "float32, bfloat16 or float16"
        )


def check_held(
    cache: Any, held: Any, layers: int, shape: tuple[int | None, ...], way_out: str
) -> None:
    """ValueError unless keys and values are of so many layers and of this shape each.

    None in the shape stands for any number.
    """
    given = [getattr(array, "shape", ()) for array in jax.tree.leaves(held)]
    if len(given) != 2 * layers or not all(_is_like(one, shape) for one in set(given)):
        of_each = f" of {list(given[0])}" if given else ""
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(
            f"cache is a {type(cache).__name__} of {len(given) // 2} layers{of_each}, and these "
            f"params and tokens take {layers} of [{wanted}]; {way_out}"
        )


def _is_like(given: tuple[int, ...], shape: tuple[int | None, ...]) -> bool:
    return len(given) == len(shape) and all(
        size in (None, of_given) for of_given, size in zip(given, shape, strict=True)
    )
