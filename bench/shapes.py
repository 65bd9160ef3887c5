"""The models that are measured, and what one step of each must read and multiply."""

from __future__ import annotations

from typing import Any

from llama_jax.checkpoint.published import parameter_count
from llama_jax.config import Config


def _shape(dim: int, layers: int, heads: int, kv_heads: int, hidden: int, **others: Any) -> Config:
    common: dict[str, Any] = {
        "vocab_size": 32000,
        "norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "attention_bias": False,
        "mlp_bias": False,
    }
    return Config(
        dim=dim,
        n_layers=layers,
        n_heads=heads,
        n_kv_heads=kv_heads,
        head_dim=dim // heads,
        hidden_dim=hidden,
        **{**common, **others},
    )


SHAPES = {
    "tiny": _shape(64, 2, 4, 2, 128, vocab_size=256, tie_embeddings=True, max_seq_len=256),
    "S": _shape(768, 12, 12, 12, 2048, tie_embeddings=True, max_seq_len=1024),
    "M": _shape(2048, 22, 32, 4, 5632, tie_embeddings=False, max_seq_len=2048),
    "S-long": _shape(768, 12, 12, 12, 2048, tie_embeddings=True, max_seq_len=32768),
}
"""S is llama2.c's stories110M, M is TinyLlama; the weights are random."""
ITEMSIZE = {"float32": 4, "bfloat16": 2}


def read_per_step(config: Config) -> int:
    """How many of its numbers one decoding step reads: all but an embedding only looked up in.

    The cache is left out: at the lengths measured it is a few hundredths of the weights for one
    row, and at 8 rows of S, in float32, a third of them.
    """
    looked_up = 0 if config.tie_embeddings else config.vocab_size * config.dim
    return parameter_count(config) - looked_up


def prefill_flops(config: Config, time: int) -> int:
    """Multiplications and additions that a prompt needs, counting each attended pair once.

    The output layer is needed at the last position alone.
    """
    c = config
    ends = c.vocab_size * c.dim * (1 if c.tie_embeddings else 2)
    layers = 2 * (parameter_count(c) - ends) * time
    pairs = time * (time + 1) // 2
    attention = c.n_layers * 4 * c.n_heads * c.head_dim * pairs
    return layers + attention + 2 * c.dim * c.vocab_size
