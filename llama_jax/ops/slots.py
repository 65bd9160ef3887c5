"""New keys and values written into a cache's slots, in place."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Slots = Float[Array, "batch kv_heads slots head_dim"]
New = Float[Array, "batch kv_heads time head_dim"]
Positions = Int[Array, "batch time"]


def write(slots: Sequence[Slots], new: Sequence[New], positions: Positions) -> tuple[Slots, ...]:
    """Every array of `slots` with its one of `new` at `positions`, cast to its dtype.

    Positions ascend by one along time; what lies beyond the slots is dropped.
    """
    scattered = lambda: _map(_scattered, slots, new, positions)  # noqa: E731
    if positions.shape[1] == 1 or not jax.sharding.get_abstract_mesh().empty:
        return scattered()
    on_cpu = lambda: _in_blocks(slots, new, positions)  # noqa: E731
    return jax.lax.platform_dependent(cpu=on_cpu, default=scattered)


def _in_blocks(
    slots: Sequence[Slots], new: Sequence[New], positions: Positions
) -> tuple[Slots, ...]:
    """A row's new slots at once where they all fit, else one after the other.

    For what XLA makes of `_scattered` on a CPU copies `new`, and takes six times as long.
    """
    time, size = positions.shape[1], slots[0].shape[2]

    def one(i: Array, slots: tuple[Slots, ...]) -> tuple[Slots, ...]:
        here = functools.partial(jax.lax.dynamic_slice_in_dim, start_index=i, slice_size=1)
        return _map(_scattered, slots, [here(x, axis=2) for x in new], here(positions, axis=1))

    def one_by_one(slots: tuple[Slots, ...]) -> tuple[Slots, ...]:
        return jax.lax.fori_loop(0, time, one, slots)

    if time > size:
        return one_by_one(tuple(slots))
    at_once = lambda slots: _map(_block, slots, new, positions)  # noqa: E731
    return jax.lax.cond(jnp.all(positions[:, -1] < size), at_once, one_by_one, tuple(slots))


# Row by row, so that XLA sees rows stay where they are when the batch is cut; traced and lowered
# once, not twice a layer.


@jax.jit
@jax.vmap
def _scattered(slots: Array, new: Array, positions: Array) -> Array:
    return slots.at[:, positions].set(new, mode="drop", unique_indices=True)


@jax.jit
@jax.vmap
def _block(slots: Array, new: Array, positions: Array) -> Array:
    return jax.lax.dynamic_update_slice_in_dim(slots, new, positions[0], axis=1)


def _map(
    one: Any, slots: Sequence[Slots], new: Sequence[New], positions: Positions
) -> tuple[Slots, ...]:
    return tuple(one(x, y.astype(x.dtype), positions) for x, y in zip(slots, new, strict=True))
