"""Models with random weights made on the device, and batches of random prompts for them."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bench.gpu_steps.sizes import TOY
from llama_jax.config import Config
from llama_jax.generation import loop
from llama_jax.generation.batch import Row, batch_settings, rows_of
from llama_jax.generation.limits import ROUND_TOKENS, initial_slots
from llama_jax.generation.loop import DecodeState, NewCache
from llama_jax.generation.placement import Placement
from llama_jax.generation.sample import BatchSettings
from llama_jax.generation.settings import SamplingSettings
from llama_jax.model.cache import KVCache
from llama_jax.weights.params import Params, nested
from llama_jax.weights.table import weight_table


def config_of(name: str, *, dry: bool) -> Config:
    """A published model's config, or the same at toy size."""
    config = Config.named(name)
    return config.replace(**TOY) if dry else config


def random_params(config: Config, dtype: Any, seed: int) -> Params:
    """Random weights, made one by one: no more than one at a time is there twice."""
    table = weight_table(config)
    keys = jax.random.split(jax.random.key(seed), len(table))
    weights = {
        path: _random(key, row.init, row.shape, dtype)
        for key, (path, row) in zip(keys, table.items(), strict=True)
    }
    return jax.block_until_ready(Params(nested(weights), config))


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _random(key: jax.Array, init: Any, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    return init(key, shape, dtype)


def random_ids(rng: np.random.Generator, config: Config, *shape: int) -> np.ndarray:
    """Token ids of all kinds but the first few, which are a tokenizer's own."""
    return rng.integers(5, config.vocab_size, shape).astype(np.int32)


def greedy_rows(config: Config, rng: np.random.Generator, rows: int, length: int) -> list[Row]:
    """Rows with random prompts that want their likeliest tokens, and do not stop."""
    asked = SamplingSettings(temperature=0.0, max_new_tokens=ROUND_TOKENS, stop_ids=())
    prompts = random_ids(rng, config, rows, length).tolist()
    return rows_of(config, prompts, [asked] * rows, 1, None, False)


@dataclasses.dataclass
class Decoding:
    """Rows whose caches hold `used` random keys and values each. Host state: a step donates it."""

    params: Params
    rows: int
    used: int
    rng: np.random.Generator

    def __post_init__(self) -> None:
        self.place = Placement.of(self.params)
        config = self.params.config
        self.slots = initial_slots(self.used, config.max_seq_len)
        asked = greedy_rows(config, self.rng, self.rows, 1)
        self.settings: BatchSettings = self.place.put(batch_settings(config, asked, self.rows))
        self.shapes = jax.eval_shape(
            functools.partial(loop.prefill, tokens_per_read=16),
            self.params,
            NewCache(KVCache, self.rows, self.slots, self.place.cache_dtype),
            jax.ShapeDtypeStruct((self.rows, 16), jnp.int32),
            jax.ShapeDtypeStruct((self.rows,), jnp.int32),
            np.int32(0),
            self.settings,
        )

    def begun(self, cache: KVCache | None = None) -> DecodeState:
        """The state after the first new token: of random keys, or of a cache used before."""
        empty = dataclasses.replace(self.shapes, cache=None)
        state: DecodeState = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), empty)
        each = lambda n: jnp.full(self.rows, n, jnp.int32)  # noqa: E731
        return dataclasses.replace(
            state,
            cache=self._random_cache() if cache is None else cache,
            history=dataclasses.replace(
                state.history, prompt_lengths=each(self.used), count=each(1)
            ),
            last=jnp.asarray(random_ids(self.rng, self.params.config, self.rows)),
            buffer=dataclasses.replace(state.buffer, count=each(1)),
        )

    def _random_cache(self) -> KVCache:
        """Of the same layout as `prefill`'s, and no longer fresh."""
        leaves, layout = jax.tree.flatten(self.shapes.cache)
        keys = jax.random.split(jax.random.key(int(self.rng.integers(2**31))), len(leaves))
        normal = jax.nn.initializers.normal(1.0)
        filled = [_random(k, normal, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)]
        return jax.tree.unflatten(layout, filled)
