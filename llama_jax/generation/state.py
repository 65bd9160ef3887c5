"""What decoding carries from token to token, and from the device to the host."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from llama_jax.config import Config
from llama_jax.generation.limits import MAX_LOGPROBS
from llama_jax.generation.sample import History
from llama_jax.model.cache import Cache
from llama_jax.pytrees import register_dataclass


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class NewCache:
    """A cache that `prefill` allocates: its kind and sizes, which are static."""

    kind: type[Cache]
    batch: int
    slots: int
    dtype: Any

    def empty(self, config: Config) -> Cache:
        """The cache."""
        return self.kind.empty(config, batch=self.batch, slots=self.slots, dtype=self.dtype)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class TokenBuffer:
    """New tokens that the host has not fetched yet."""

    tokens: Int[Array, "batch round"]
    logprobs: Float[Array, "batch round"]
    """Log-probabilities of `tokens` by the raw logits, before bias, penalties and temperature."""
    top_ids: Int[Array, "batch round k"]
    top_logprobs: Float[Array, "batch round k"]
    count: Int[Array, " batch"]
    """New tokens of each row, those that the host has fetched included."""
    stopped: Bool[Array, " batch"]
    """Whether a row met a stop id, or had no next token. What it met lies after its tokens."""

    @classmethod
    def empty(
        cls, count: Int[Array, " batch"], stopped: Bool[Array, " batch"], round: int, vocab: int
    ) -> TokenBuffer:
        """Room for `round` tokens of rows that have `count` tokens."""
        places, k = (len(count), round), min(MAX_LOGPROBS, vocab)
        return cls(
            tokens=jnp.zeros(places, jnp.int32),
            logprobs=jnp.zeros(places),
            top_ids=jnp.zeros((*places, k), jnp.int32),
            top_logprobs=jnp.zeros((*places, k)),
            count=count,
            stopped=stopped,
        )


@register_dataclass
@dataclasses.dataclass(frozen=True)
class DecodeState:
    """A batch that is being decoded."""

    cache: Any
    history: History
    last: Int[Array, " batch"]
    """Each row's newest token, which is not in the cache yet."""
    buffer: TokenBuffer


def is_deleted(cache: Any) -> bool:
    """Whether a program was given the cache's memory and did not return."""
    return any(leaf.is_deleted() for leaf in jax.tree.leaves(cache))
