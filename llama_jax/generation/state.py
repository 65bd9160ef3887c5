"""What decoding carries from token to token, and from the device to the host."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from jaxtyping import Array, Bool, Float, Int

from llama_jax.config import Config
from llama_jax.generation.sample import History
from llama_jax.model.cache import Cache


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class NewCache:
    """A cache that `prefill` is to make itself: its kind and sizes, which are static."""

    kind: type[Cache]
    batch: int
    slots: int
    dtype: Any

    def empty(self, config: Config) -> Cache:
        """The cache."""
        return self.kind.empty(config, batch=self.batch, slots=self.slots, dtype=self.dtype)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TokenBuffer:
    """The tokens that the device decided and the host has not taken yet."""

    tokens: Int[Array, "batch round"]
    logprobs: Float[Array, "batch round"]
    """Of `tokens`, under the raw logits: before bias, penalties and temperature."""
    top_ids: Int[Array, "batch round k"]
    top_logprobs: Float[Array, "batch round k"]
    count: Int[Array, " batch"]
    """How many tokens a row has, those that the host took included."""
    stopped: Bool[Array, " batch"]
    """Whether a row met a stop id, or had no next token. What it met lies after its tokens."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DecodeState:
    """A batch in the middle of being decoded."""

    cache: Any
    history: History
    last: Int[Array, " batch"]
    """Each row's newest token, which is not in the cache yet."""
    buffer: TokenBuffer
