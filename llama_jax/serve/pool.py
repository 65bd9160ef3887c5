"""What a pool is made of, and how many pages it has. That is computed, not tried."""

from __future__ import annotations

from typing import Any

import jax

from llama_jax.config import Config
from llama_jax.free_memory import free_memory
from llama_jax.generation.limits import power_of_two
from llama_jax.generation.placement import Placement
from llama_jax.model.cache import KVCache
from llama_jax.model.int8_cache import Int8KVCache
from llama_jax.model.int8_paged import Int8Paged
from llama_jax.model.paged import PAGE, Paged
from llama_jax.weights.params import Params

HOST_BYTES = 4 << 30
"""A pool in the host's memory is no larger than this by default."""
HOST_SHARE = 0.25
"""And no larger than this part of the memory that is free."""
DEVICE_SHARE = 0.9
"""The part of a device's memory that weights, pool and a program's own arrays may fill."""
STEP_ROWS = 4
"""A program's own arrays are bounded as so many float32 logits of its rows and chunk."""
KEPT = 4
"""A device's pool has no more pages than so many times what all seats can fill: the rest would
hold only beginnings of texts that were long ago. A host's pool has no more than all seats can
fill: the rest of the memory is other programs' too, and to fill it with zeros holds up a start."""
STEPS = 8
"""Pages in a host's memory are a multiple of an eighth of a power of two. What is free there is
never twice the same, and a pool of another size needs programs that no earlier start has kept."""

_POOLS: dict[Any, type[Paged]] = {KVCache: Paged, Int8KVCache: Int8Paged}


def has_pages(place: Placement) -> bool:
    """Whether a kind of cache has a form in pages."""
    return place.cache in _POOLS


def pool_kind(place: Placement) -> type[Paged]:
    """The pages that hold what a kind of cache holds. ValueError where none do."""
    if not has_pages(place):
        raise ValueError(
            f"cache={place.cache.__name__} has no form in pages, in which an engine keeps keys and "
            "values; pass llama_jax.KVCache or llama_jax.Int8KVCache"
        )
    return _POOLS[place.cache]


def pages_of_pool(
    params: Params, place: Placement, seats: int, cache_bytes: int | None, chunk: int
) -> int:
    """The pages of a pool of `cache_bytes`, or of the memory that is free.

    Where they hold less than the model's context, that is the longest text. ValueError where they
    hold nothing.
    """
    config = params.config
    filled = seats * -(-config.max_seq_len // PAGE)
    each = pool_kind(place).pool_bytes(config, pages=1, dtype=place.cache_dtype)
    free = _free_bytes(params, place, seats, chunk) if cache_bytes is None else cache_bytes
    pages = min(free // each, KEPT * filled)
    if cache_bytes is None and _limit(place) is None:
        pages = min(_rounded(pages), filled)
    if not pages:
        raise ValueError(
            f"{free / 2**30:.3f} GiB are left for keys and values, and {PAGE} tokens take "
            f"{each / 2**30:.3f} GiB; give the cache more, or run the model on more devices"
        )
    return pages


def _free_bytes(params: Params, place: Placement, seats: int, chunk: int) -> int:
    """What may be taken for the pool, over all devices."""
    devices = _devices(place)
    limit = _limit(place)
    unread = _unread_bytes(params)
    if limit is None:
        return max(0, min(HOST_BYTES, int(HOST_SHARE * (free_memory() - unread))))
    used = (devices[0].memory_stats() or {})["bytes_in_use"] + unread // len(devices)
    free = DEVICE_SHARE * limit - used - _step_bytes(params.config, seats, chunk)
    return max(0, int(free) * len(devices))


def _limit(place: Placement) -> int | None:
    """The bytes that JAX has of a device; None where the memory is the host's own."""
    return (_devices(place)[0].memory_stats() or {}).get("bytes_limit")


def _devices(place: Placement) -> list[Any]:
    return [jax.devices()[0]] if place.mesh is None else list(place.mesh.devices.flat)


def _unread_bytes(params: Params) -> int:
    """The bytes of weights that are shapes: they are read after the pool's size is known."""
    shapes = [x for x in jax.tree.leaves(params.weights) if isinstance(x, jax.ShapeDtypeStruct)]
    return sum(x.size * x.dtype.itemsize for x in shapes)


def _rounded(pages: int) -> int:
    """The largest number up to `pages` that is a multiple of an eighth of a power of two."""
    step = max(1, power_of_two(pages + 1) // 2 // STEPS)
    return pages // step * step


def _step_bytes(config: Config, seats: int, chunk: int) -> int:
    """The arrays of a step beside weights and pool: logits and what sampling makes of them, and a
    chunk's activations in the feed-forward layer."""
    logits = 4 * STEP_ROWS * seats * config.vocab_size
    return logits + 4 * STEP_ROWS * chunk * (config.hidden_dim + config.dim)
