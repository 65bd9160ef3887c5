"""What `forward` may be given: each failure is a ValueError that says what to pass instead."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from llama_jax.model.cache_protocol import Checked, Positions
from llama_jax.validation import WrongKindError, wrong_kind
from llama_jax.weights.params import check_params


def check_inputs(params: Any, tokens: Any, cache: Any, at: Any) -> None:
    """ValueError unless these are params, integers [batch, time], a cache, `at` [batch, wanted]."""
    check_params(params)
    if cache is not None and (isinstance(cache, type) or not hasattr(cache, "layer")):
        way_out = "pass a cache, such as KVCache.empty(config, batch=1, slots=256, dtype=...)"
        raise wrong_kind("cache", cache, way_out)
    _check_ids("tokens", tokens, "jnp.array([ids])")
    if isinstance(cache, Checked):
        cache.check(params.config, tokens.shape[0])
    slots = getattr(cache, "slots", None)
    if isinstance(slots, int) and tokens.shape[1] > slots:
        raise ValueError(
            f"tokens of shape {list(tokens.shape)} have no room in a cache of {slots} slots a row; "
            f"make it with slots={tokens.shape[1]} or more, or pass fewer tokens at a time"
        )
    if at is not None:
        _check_ids("at", at, "jnp.array([[time - 1]])")
        if at.shape[0] != tokens.shape[0]:
            raise ValueError(
                f"at of shape {list(at.shape)} has not as many rows as tokens of shape "
                f"{list(tokens.shape)}; pass the time indices wanted of each row"
            )


def checked_positions(positions: Positions | None, tokens: Int[Array, "batch time"]) -> Positions:
    """The positions, once there is one for each token."""
    if positions is None:
        raise ValueError(
            "forward needs the positions of its tokens, [batch, time]; they count from 0 where a "
            "text begins: pass jnp.broadcast_to(jnp.arange(time), tokens.shape), or, after a past "
            "of n tokens in a cache, n more"
        )
    _check_ids("positions", positions, "jnp.arange(time)[None]")
    if positions.shape != tokens.shape:
        raise ValueError(
            f"positions of shape {list(positions.shape)} are not those of tokens of shape "
            f"{list(tokens.shape)}; pass one a token: jnp.broadcast_to(positions, tokens.shape)"
        )
    return positions


def _check_ids(name: str, value: Any, example: str) -> None:
    if not isinstance(value, jax.Array | np.ndarray):
        raise WrongKindError(
            f"{name}={str(value)[:40]} is a {type(value).__name__}; pass an array [batch, time]: "
            f"{example}"
        )
    if value.ndim != 2 or not jnp.issubdtype(value.dtype, jnp.integer):
        raise ValueError(
            f"{name} of shape {list(value.shape)} and dtype {value.dtype}: pass integers [batch, "
            f"time]: {example}"
        )
    if not value.size:
        raise ValueError(f"{name} of shape {list(value.shape)}: pass at least one, in each row")
