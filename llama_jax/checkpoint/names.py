"""The one table of names: where each weight lives in our tree, and what others call it."""

from __future__ import annotations

from typing import NamedTuple

from llama_jax.config import Config
from llama_jax.params import WeightPath


class Weight(NamedTuple):
    """One row of the table."""

    path: WeightPath
    shape: tuple[int, ...]
    """In our layout, where a matrix is [in, out] and the embedding [vocab, dim]."""
    meta: str
    """The name in Meta's files, which store a matrix as [out, in]."""


def table(config: Config) -> list[Weight]:
    """Every weight of a model, in the order in which activations meet them."""
    c = config
    rows = [Weight(("tok_embeddings", "weight"), (c.vocab_size, c.dim), "tok_embeddings.weight")]
    for i in range(c.n_layers):
        for (group, *rest), shape in _layer(c):
            path = (f"layers_{i}", group, *rest)
            # Meta files a norm's scale as the norm's "weight".
            name = ".".join([f"layers.{i}", group, *(k for k in rest if k != "scale"), "weight"])
            rows.append(Weight(path, shape, name))
    rows.append(Weight(("norm", "scale"), (c.dim,), "norm.weight"))
    if not c.tie_embeddings:
        rows.append(Weight(("output", "weight"), (c.dim, c.vocab_size), "output.weight"))
    return rows


def _layer(c: Config) -> list[tuple[WeightPath, tuple[int, ...]]]:
    query_dim, kv_dim = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    return [
        (("attention_norm", "scale"), (c.dim,)),
        (("attention", "wq"), (c.dim, query_dim)),
        (("attention", "wk"), (c.dim, kv_dim)),
        (("attention", "wv"), (c.dim, kv_dim)),
        (("attention", "wo"), (query_dim, c.dim)),
        (("ffn_norm", "scale"), (c.dim,)),
        (("feed_forward", "w1"), (c.dim, c.hidden_dim)),
        (("feed_forward", "w3"), (c.dim, c.hidden_dim)),
        (("feed_forward", "w2"), (c.hidden_dim, c.dim)),
    ]
