"""Two programs serve every turn of a conversation: one prefills the new tokens, one decodes.

They are compiled before the first turn runs either, so that an answer does not pause after its
first word.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from llama_jax.config import Config
from llama_jax.generation.batch import batch_settings, rows_of
from llama_jax.generation.driver import Prefill, compile_ahead
from llama_jax.generation.limits import initial_slots
from llama_jax.generation.placement import Placement
from llama_jax.generation.prompts import tokenizer_of
from llama_jax.generation.sample import BatchSettings
from llama_jax.generation.settings import SamplingSettings
from llama_jax.model.cache import Cache, KVCache
from llama_jax.sharding.arrays import constrain
from llama_jax.weights.params import Params


def empty_cache(params: Params, place: Placement, slots: int) -> Any:
    """An empty cache that is not `fresh`, so that one program serves the first turn and others."""
    with place.use_mesh():
        cache = _empty(place.cache, params.config, place.batch_divisor, slots, place.cache_dtype)
    leaf = jax.tree.leaves(params.weights)[0]
    if place.mesh is not None or not leaf.committed:
        return cache
    return jax.device_put(cache, leaf.sharding)


def turn_of(
    params: Params,
    place: Placement,
    cache: Cache,
    ids: list[int],
    read: int,
    settings: BatchSettings,
) -> Prefill:
    """What reads a dialog of which the cache holds `read` tokens."""
    size = place.batch_divisor  # the rows after the first ask for nothing
    texts = np.zeros((size, cache.slots), np.int32)
    texts[0, : len(ids)] = ids
    lengths = np.array([len(ids)] + [1] * (size - 1), np.int32)
    tokens = place.limits.turn_tokens
    return Prefill(params, cache, texts, lengths, np.int32(read), settings, tokens)


def prepare_turns(
    params: Params, settings: SamplingSettings | None = None, *, cache: type[Cache] = KVCache
) -> Iterator[None]:
    """Compiles what a `Conversation`'s first turn will run, if its question is short.

    Yields after each of the two programs. The weights may be shapes (`checkpoint.shapes`), so that
    this can go on while `load` reads, or while somebody types.
    """
    place, config = Placement.of(params, cache), params.config
    wanted = [settings or SamplingSettings()]
    rows = rows_of(config, [[0]], wanted, 1, tokenizer_of(params, None), truncate=False)
    slots = initial_slots(1, config.max_seq_len)
    with place.use_mesh():
        make = functools.partial(
            _empty, place.cache, config, place.batch_divisor, slots, place.cache_dtype
        )
        empty = jax.eval_shape(make)
    sharding = jax.tree.leaves(params.weights)[0].sharding
    empty = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), empty)
    told = place.put(batch_settings(config, rows, place.batch_divisor))
    yield from compile_ahead(place, turn_of(params, place, empty, [0], 0, told))


@functools.partial(jax.jit, static_argnums=range(5))
def _empty(kind: type[Cache], config: Config, batch: int, slots: int, dtype: Any) -> Any:
    cache = kind.empty(config, batch=batch, slots=slots, dtype=dtype).continued()
    return jax.tree.map(constrain, cache, cache.specs())
