"""A GGUF file's metadata as a `Config`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from llama_jax.checkpoint.files.json_file import Fields
from llama_jax.checkpoint.files.messages import listed, shorten
from llama_jax.checkpoint.gguf.rope import YARN, number_of, read_scaling
from llama_jax.config import Config

_PREFIX = "llama."
_KNOWN = {
    *("vocab_size", "context_length", "embedding_length", "block_count", "feed_forward_length"),
    *("attention.head_count", "attention.head_count_kv", "attention.layer_norm_rms_epsilon"),
    *("attention.key_length", "attention.value_length", "rope.dimension_count", "rope.freq_base"),
    *("rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length"),
    *("rope.scaling.finetuned", "rope.scale_linear", "tensor_data_layout", "expert_count"),
    *("expert_used_count", "attention.causal", *YARN),
}
_OLD_SCALING = (
    "the file says no RoPE scaling, and a context of {reach:,} positions with rope_theta 500,000 "
    "is Llama 3.1's or later: files that llama.cpp wrote before July 2024 lack it; if the model "
    "writes nonsense in long texts, get a newer file"
)


def read_config(
    metadata: Mapping[str, Any],
    *,
    vocab_size: int,
    names: Collection[str],
    freqs: np.ndarray | None,
    max_seq_len: int | None,
) -> tuple[Config, tuple[str, ...], tuple[str, ...]]:
    """The model, notes on what was supplied, and warnings.

    `names` are the tensors', which say whether the output is the embedding and what has biases;
    `freqs` are the numbers of `rope_freqs.weight`, by which RoPE's frequencies are divided.
    """
    _check_kind(metadata)
    fields = Fields({key.removeprefix(_PREFIX): _plain(key, metadata[key]) for key in metadata})
    dim, heads = fields.count("embedding_length"), fields.count("attention.head_count")
    head_dim = fields.count("attention.key_length", default=max(1, dim // heads))
    _check_heads(fields, dim, heads, head_dim)
    theta = number_of(fields, "rope.freq_base", 10_000.0)
    reach = fields.count("context_length")
    scaling = read_scaling(fields, theta, head_dim, freqs)
    config = Config(
        dim=dim,
        n_layers=fields.count("block_count"),
        n_heads=heads,
        n_kv_heads=fields.count("attention.head_count_kv", default=heads),
        head_dim=head_dim,
        hidden_dim=fields.count("feed_forward_length"),
        vocab_size=vocab_size,
        norm_eps=number_of(fields, "attention.layer_norm_rms_epsilon", None),
        rope_theta=theta,
        rope_scaling=scaling,
        tie_embeddings="output.weight" not in names,
        attention_bias=any(".attn_" in name and name.endswith(".bias") for name in names),
        mlp_bias=any(".ffn_" in name and name.endswith(".bias") for name in names),
        max_seq_len=reach if max_seq_len is None else max_seq_len,
    )
    own = [key.removeprefix(_PREFIX) for key in metadata if key.startswith(_PREFIX)]
    unknown = [key for key in own if key not in _KNOWN]
    notes = [f"keys ignored, which are not known: {listed(unknown)}"] if unknown else []
    if config.tie_embeddings:
        notes.append("output.weight is not stored: the output layer is the embedding")
    late = scaling is None and reach > 8192 and theta == 500_000
    return config, tuple(notes), (_OLD_SCALING.format(reach=reach),) if late else ()


def _check_kind(metadata: Mapping[str, Any]) -> None:
    kind = metadata.get("general.architecture")
    if kind != "llama":
        raise ValueError(
            f"the model's general.architecture is {shorten(kind)}, and only llama is read"
        )
    experts = metadata.get("llama.expert_count", 0)
    if experts:
        raise ValueError(
            f"the model has {shorten(experts)} experts a layer, as Mixtral has; only dense LLaMA "
            "models are read"
        )


def _plain(key: str, value: Any) -> Any:
    """A value; of an array with an entry a layer, the one that all are."""
    if not isinstance(value, np.ndarray) or not key.startswith(_PREFIX):
        return value
    if value.size and (value == value[0]).all():
        return value[0].item()
    raise ValueError(f"{key} differs from layer to layer, which no LLaMA's does; it is not read")


def _check_heads(fields: Fields, dim: int, heads: int, head_dim: int) -> None:
    if "attention.key_length" not in fields and dim % heads:
        raise ValueError(f"attention.head_count={heads} does not divide embedding_length={dim}")
    for key, what in (
        ("attention.value_length", "values as long as keys"),
        ("rope.dimension_count", "RoPE over whole heads"),
    ):
        if (found := fields.count(key, default=head_dim)) != head_dim:
            raise ValueError(f"{key}={found} where heads have {head_dim}; only {what} is read")
