"""RoPE as config.json states it, in the three spellings that transformers has written.

`rope_theta` beside `rope_scaling`, whose kind is its "type" or later its "rope_type"; and since
version 5 `rope_parameters`, with `rope_theta` inside. A kind's own defaults are transformers'.
"""

from __future__ import annotations

import math
from typing import Any

from llama_jax.checkpoint.files.json_file import Fields, shown
from llama_jax.config import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    RopeScaling,
    YarnScaling,
)

Rope = tuple[float, RopeScaling | None, tuple[str, ...]]
_COMMON = {"rope_type", "type", "rope_theta", "factor", "partial_rotary_factor"}
_KNOWN = {
    "default": _COMMON,
    "linear": _COMMON,
    "dynamic": {*_COMMON, "original_max_position_embeddings"},
    "llama3": {
        *_COMMON,
        *("low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    },
    "yarn": {
        *_COMMON,
        *("original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow"),
        *("mscale", "mscale_all_dim", "truncate"),
    },
}


def read_rope(fields: Fields, max_position_embeddings: int) -> Rope:
    """The base, the scaling, and what a person should know of them."""
    given: dict[str, Any] = {}
    for key in ("rope_scaling", "rope_parameters"):  # the first wins, as in transformers
        value = fields.raw(key)
        if value is not None and not isinstance(value, dict):
            raise ValueError(f"{key}={shown(value)} must be an object or null")
        given = given or value or {}
    rope, notes = Fields(given), []
    if "rope_theta" in rope:
        theta = rope.number("rope_theta")
    else:
        theta = fields.number("rope_theta", default=10000.0)
        if "rope_theta" not in fields:
            notes.append("rope_theta 10000 supplied, transformers' default: config.json says none")
    kind = rope.raw("rope_type") or rope.raw("type") or "default"
    if not isinstance(kind, str) or kind not in _KNOWN:
        raise ValueError(
            f"RoPE scaling of the kind {shown(kind)} is not known; "
            f"{', '.join(_KNOWN)} are, so it takes a model with one of these"
        )
    for where in (rope, fields):
        if where.number("partial_rotary_factor", default=1.0) != 1:
            raise ValueError(
                f"partial_rotary_factor={shown(where.raw('partial_rotary_factor'))} is not "
                "LLaMA's, which rotates whole heads; only 1 is known"
            )
    if unknown := sorted(key for key in given if key not in _KNOWN[kind]):
        notes.append(f"unknown keys of its RoPE ignored: {shown(', '.join(unknown))}")
    # A few models state it beside the scaling, where transformers lets it win.
    stated = fields if "original_max_position_embeddings" in fields else rope
    original = stated.count("original_max_position_embeddings", default=max_position_embeddings)
    return theta, _scaling(kind, rope, original, max_position_embeddings), tuple(notes)


def _scaling(kind: str, rope: Fields, original: int, reach: int) -> RopeScaling | None:
    match kind:
        case "linear":
            return LinearScaling(rope.number("factor"))
        case "dynamic":
            return DynamicScaling(rope.number("factor"), original_max_seq_len=reach)
        case "llama3":
            return Llama3Scaling(
                factor=rope.number("factor"),
                low_freq_factor=rope.number("low_freq_factor"),
                high_freq_factor=rope.number("high_freq_factor"),
                original_max_seq_len=original,
            )
        case "yarn":
            factor = rope.number("factor", default=reach / original)
            return YarnScaling(
                factor=factor,
                beta_fast=rope.number("beta_fast", default=32.0),
                beta_slow=rope.number("beta_slow", default=1.0),
                truncate=rope.flag("truncate", default=True),
                attention_factor=_attention_factor(rope, factor),
                original_max_seq_len=original,
            )
    if kind != "default":
        raise ValueError(f"rope_type {kind!r} has no scaling here; see rope_scaling.SCALINGS")
    return None


def _attention_factor(rope: Fields, factor: float) -> float:
    """As stated, or by YaRN's rule; DeepSeek's two mscales divide one such rule by another."""

    def magnitude(scale: float) -> float:
        return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0

    if "attention_factor" in rope:
        return rope.number("attention_factor")
    if rope.raw("mscale") and rope.raw("mscale_all_dim"):
        return magnitude(rope.number("mscale")) / magnitude(rope.number("mscale_all_dim"))
    return magnitude(1.0)
