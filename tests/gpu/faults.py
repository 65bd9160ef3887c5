"""Steps with a fault: a model that looks at something once more, and a cache to turn around."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from llama_jax.kernels.blockwise import Span, over_spans
from llama_jax.model import transformer as model
from llama_jax.model.cache import KVCache, KVLayer
from llama_jax.pytrees import register_dataclass


def looks_at_a_weight_again(params, tokens, positions, cache, at=None):
    logits, cache = model.forward(params, tokens, positions, cache, at=at)
    w1 = params.weights["layers_0"]["feed_forward"]["w1"]
    # Of no two tokens the same: else a loop would look once, before it begins.
    return logits + jnp.max(w1 * positions[0, 0].astype(w1.dtype)), cache


def looks_at_the_past(params, tokens, positions, cache, at=None):
    logits, after = model.forward(params, tokens, positions, cache, at=at)
    return logits + jnp.max(cache.k[0]), after


def looks_at_what_it_wrote(params, tokens, positions, cache, at=None):
    logits, after = model.forward(params, tokens, positions, cache, at=at)
    return logits + jnp.max(after.k[0]), after


def looks_at_the_past_block_by_block(params, tokens, positions, cache, at=None):
    logits, after = model.forward(params, tokens, positions, cache, at=at)
    block = lambda start: jnp.max(jax.lax.dynamic_slice_in_dim(cache.k[0], start, 512, 2))  # noqa: E731
    return logits + jnp.max(jax.lax.map(block, jnp.arange(0, cache.slots, 512))), after


@register_dataclass
@dataclasses.dataclass(frozen=True)
class TurnedSlots(KVLayer):
    """Of [batch, slots, kv_heads, head_dim], which attention must turn around."""

    def attend(self, q: Any, k: Any, v: Any, positions: Any):
        turned = lambda x: x.transpose(0, 2, 1, 3)  # noqa: E731
        slots = jnp.arange(self.k.shape[1])[None]
        past = Span(turned(self.k), turned(self.v), slots, positions[:, :1] - 1)
        out = over_spans(q, [past, Span(turned(k), turned(v), positions, positions)])
        return out, (k, v)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class SlotsFirst(KVCache):
    """A cache of such layers."""

    @classmethod
    def like(cls, cache: KVCache):
        """One of the same sizes."""

        def turned(x):
            batch, kv_heads, slots, head_dim = x.shape
            shape = (batch, slots, kv_heads, head_dim)
            return jax.ShapeDtypeStruct(shape, x.dtype, sharding=x.sharding)

        return cls(tuple(map(turned, cache.k)), tuple(map(turned, cache.v)))

    def check(self, config: Any, rows: int):
        """Its layout is its own."""

    @property
    def slots(self):
        return self.k[0].shape[1]

    def layer(self, layer: int):
        return TurnedSlots(self.k[layer], self.v[layer], self.fresh)

    def commit(self, steps: Any, positions: Any, after: Any):
        rows = jnp.arange(positions.shape[0])[:, None]
        place = jnp.where(after[:, :1, 0] > jnp.inf, 0, positions)
        write = lambda old, new: old.at[rows, place].set(new, mode="drop")  # noqa: E731
        k, v = zip(*steps, strict=True)
        return SlotsFirst(tuple(map(write, self.k, k)), tuple(map(write, self.v, v)))
