"""Hugging Face's config.json as a `Config`, in its old and new spellings."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from llama_jax.checkpoint.files.json_file import Fields, read_object, shown
from llama_jax.checkpoint.huggingface.rope import read_rope
from llama_jax.config import Config, DynamicScaling

# The second in the first conversions, the third where the output layer was left out.
_ARCHITECTURES = ("LlamaForCausalLM", "LLaMAForCausalLM", "LlamaModel")
_NEEDED = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads"),
    *("intermediate_size", "vocab_size"),
)
"""The keys without a default."""


@dataclasses.dataclass(frozen=True)
class HFConfig:
    """What config.json says, checked."""

    config: Config
    notes: tuple[str, ...]
    """What was supplied or passed over, for a person to know."""
    quantized: str | None
    """How it says that the weights are quantized, which only the weights themselves decide."""
    quantization: Any = None
    """`quantization_config` as it stands there."""


def read_hf_config(file: Path, max_seq_len: int | None = None) -> HFConfig:
    """Reads config.json; every error is a ValueError that names it.

    A `max_seq_len` stands in for its `max_position_embeddings`.
    """
    fields = Fields(read_object(file))
    try:
        _check_kind(fields)
        return _parse(fields, max_seq_len)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def _check_kind(fields: Fields) -> None:
    """Refuses what is not a plain LLaMA by the name of what it is."""
    kind, architectures = fields.raw("model_type"), fields.raw("architectures") or []
    if not isinstance(architectures, list) or (kind is None and not architectures):
        raise ValueError(
            "it names neither a model_type nor architectures, so it is not known to be LLaMA's; "
            "download it again"
        )
    known = not architectures or any(name in _ARCHITECTURES for name in architectures)
    if not known or kind not in (None, "llama"):
        name = architectures[0] if architectures else kind
        raise ValueError(
            f"the model is {shown(name)} (model_type {shown(kind)}); only LlamaForCausalLM "
            "(model_type llama) is read"
        )
    activation = fields.raw("hidden_act")
    if activation not in (None, "silu", "swish"):  # two names of one function
        raise ValueError(f"hidden_act={shown(activation)} is not LLaMA's; only silu is known")


def _parse(fields: Fields, max_seq_len: int | None) -> HFConfig:
    fields.require(*_NEEDED)
    dim, heads = fields.count("hidden_size"), fields.count("num_attention_heads")
    if "head_dim" not in fields and dim % heads:
        raise ValueError(
            f"num_attention_heads={heads} does not divide hidden_size={dim}, and there is no "
            "head_dim; the file is damaged"
        )
    reach = fields.count("max_position_embeddings", default=2048)
    theta, scaling, notes = read_rope(fields, reach)
    config = Config(
        dim=dim,
        n_layers=fields.count("num_hidden_layers"),
        n_heads=heads,
        n_kv_heads=fields.count("num_key_value_heads", default=heads),
        head_dim=fields.count("head_dim", default=dim // heads),
        hidden_dim=fields.count("intermediate_size"),
        vocab_size=fields.count("vocab_size"),
        norm_eps=fields.number("rms_norm_eps", default=1e-6),
        rope_theta=theta,
        rope_scaling=scaling,
        tie_embeddings=fields.flag("tie_word_embeddings", default=False),
        attention_bias=fields.flag("attention_bias", default=False),
        mlp_bias=fields.flag("mlp_bias", default=False),
        max_seq_len=reach if max_seq_len is None else max_seq_len,
    )
    if "rms_norm_eps" not in fields:
        notes += ("rms_norm_eps 1e-6 supplied, transformers' default: config.json says none",)
    if "max_position_embeddings" not in fields and max_seq_len is None:
        notes += ("max_seq_len 2048 supplied, transformers' default; pass max_seq_len for another",)
    if isinstance(scaling, DynamicScaling):
        notes += (
            f"dynamic NTK RoPE changes nothing up to {reach:,} positions, where the context ends: "
            "beyond, it depends on the length of the text, which a cache of keys cannot follow",
        )
    if "auto_map" in fields:
        notes += ("auto_map ignored: no code that came with a checkpoint is run",)
    return HFConfig(config, notes, _quantized(fields), fields.raw("quantization_config"))


def _quantized(fields: Fields) -> str | None:
    """What it says of quantization: `quantization_config`, or MLX's `quantization`."""
    for key in ("quantization_config", "quantization"):
        if (said := fields.raw(key)) is not None:
            method = said.get("quant_method") if isinstance(said, dict) else said
            if isinstance(said, dict) and method is None and "bits" in said:
                return f"{key} says {shown(said['bits'])} bits"
            return f"{key} says {shown(method)}"
    return None
