"""RoPE's scaling in a GGUF file: its keys, and Llama 3's by the numbers of `rope_freqs.weight`."""

from __future__ import annotations

import math
from typing import Any, assert_never

import numpy as np

from llama_jax.checkpoint.files.json_file import Fields
from llama_jax.checkpoint.files.messages import shorten
from llama_jax.config import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    RopeScaling,
    YarnScaling,
)
from llama_jax.ops.rope import frequencies

YARN = tuple(
    f"rope.scaling.{key}"
    for key in (
        *("attn_factor", "yarn_attn_factor", "yarn_beta_fast", "yarn_beta_slow"),
        *("yarn_ext_factor", "yarn_log_multiplier"),
    )
)
"""Keys of YaRN's alone."""
_BETAS = (32.0, 1.0)
"""Rotations between which YaRN's change lies, of which llama.cpp reads no others of a LLaMA."""
_FLOATS = "get the model's safetensors files"


def number_of(fields: Fields, key: str, default: float | None) -> float:
    """A float32 as people write it: 1e-05, and not 9.999999747378752e-06."""
    return float(str(np.float32(fields.number(key, default=default))))


def read_scaling(
    fields: Fields, theta: float, head_dim: int, freqs: np.ndarray | None
) -> RopeScaling | None:
    """The scaling that the keys or `freqs` state. ValueError names one that is not read."""
    kind = fields.raw("rope.scaling.type") or "none"
    if freqs is not None and not (freqs == 1).all():
        if kind not in ("none", "llama3"):
            raise ValueError(f"rope_freqs.weight and rope.scaling.type={kind} are both there")
        return _of_factors(theta, head_dim, freqs)
    factor = number_of(fields, "rope.scaling.factor", number_of(fields, "rope.scale_linear", 1.0))
    if kind in ("none", "linear"):
        scaled = factor != 1 and (kind == "linear" or "rope.scale_linear" in fields)
        return LinearScaling(factor) if scaled else None
    if kind == "yarn":
        return _yarn(fields, factor)
    raise ValueError(
        f"rope.scaling.type={shorten(kind)} is not read, only linear, yarn and Llama 3's "
        f"(rope_freqs.weight); {_FLOATS}"
    )


def written_scaling(scaling: RopeScaling | None) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The keys of a scaling, and notes. ValueError for a YaRN that llama.cpp does not compute."""
    match scaling:
        case LinearScaling(factor):
            return {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": factor}, ()
        case YarnScaling():
            return _yarn_keys(scaling), ()
        case DynamicScaling(original_max_seq_len=original):
            return {}, (f"dynamic RoPE scaling is left out: it changes nothing up to {original:,}",)
        case None | Llama3Scaling():  # the latter's is a tensor, `rope_freqs.weight`
            return {}, ()
    assert_never(scaling)


def _yarn(fields: Fields, factor: float) -> YarnScaling:
    """YaRN as llama.cpp computes it, whose cosines are `attn_factor * (1 + 0.1 ln factor)` long.

    `yarn_attn_factor` is that whole length, as a converter found it in config.json.
    """
    ext, log = (fields.raw(f"rope.scaling.yarn_{key}") for key in ("ext_factor", "log_multiplier"))
    if ext not in (None, 1) or log not in (None, 0):
        raise ValueError(
            f"YaRN with yarn_ext_factor={shorten(ext)} and yarn_log_multiplier={shorten(log)} is "
            f"not read, only with 1 and 0; {_FLOATS}"
        )
    length, stated = _length(factor), "rope.scaling.yarn_attn_factor"
    if stated in fields:
        length = number_of(fields, stated, None)
    else:
        length *= number_of(fields, "rope.scaling.attn_factor", 1.0)
    return YarnScaling(
        factor=factor,
        beta_fast=number_of(fields, "rope.scaling.yarn_beta_fast", _BETAS[0]),
        beta_slow=number_of(fields, "rope.scaling.yarn_beta_slow", _BETAS[1]),
        truncate=True,
        attention_factor=length,
        original_max_seq_len=fields.count(
            "rope.scaling.original_context_length", default=fields.count("context_length")
        ),
    )


def _yarn_keys(scaling: YarnScaling) -> dict[str, Any]:
    if (scaling.beta_fast, scaling.beta_slow, scaling.truncate) != (*_BETAS, True):
        raise ValueError(
            f"rope_scaling={scaling!r} is not written as GGUF, which has YaRN with beta_fast=32, "
            "beta_slow=1 and truncate=True; use format hf"
        )
    keys: dict[str, Any] = {
        "type": "yarn",
        "factor": scaling.factor,
        "original_context_length": scaling.original_max_seq_len,
    }
    plain = _length(scaling.factor)
    if not math.isclose(scaling.attention_factor, plain, rel_tol=1e-6):
        keys["attn_factor"] = scaling.attention_factor / plain
        keys["yarn_attn_factor"] = scaling.attention_factor
    return {f"llama.rope.scaling.{key}": value for key, value in keys.items()}


def _length(factor: float) -> float:
    """What YaRN's authors multiply rotated queries and keys by."""
    return 1.0 + 0.1 * math.log(factor) if factor > 1 else 1.0


def _of_factors(theta: float, head_dim: int, freqs: np.ndarray) -> Llama3Scaling:
    """Llama 3's scaling, where it makes these numbers: 8 in Llama 3.1 and 3.3, 32 in 3.2."""
    factor = float(freqs[-1])
    if freqs.shape == (head_dim // 2,) and np.isfinite(factor) and factor > 1:
        scaling = Llama3Scaling(
            factor=factor, low_freq_factor=1.0, high_freq_factor=4.0, original_max_seq_len=8192
        )
        plain = frequencies(head_dim, theta)
        if np.allclose(plain / scaling.scaled(plain, theta), freqs, rtol=1e-4, atol=0):
            return scaling
    raise ValueError(
        f"rope_freqs.weight {shorten(list(map(float, freqs[:4])))}... is not what Llama 3's "
        "scaling makes of any factor; get the model's safetensors files"
    )
