"""The one table of names: where each weight lives in our tree, and what others call it."""

from __future__ import annotations

from typing import NamedTuple

from llama_jax.config import Config
from llama_jax.weights.params import WeightPath

EMBEDDING, OUTPUT = ("tok_embeddings", "weight"), ("output", "weight")


class Weight(NamedTuple):
    """One row of the table."""

    path: WeightPath
    shape: tuple[int, ...]
    """In our layout, where a matrix is [in, out] and the embedding [vocab, dim]."""
    meta: str
    """The name in Meta's files, which store a matrix as [out, in]. Meta's own models have no
    biases: theirs are the names that its modules would give them."""
    hf: str
    """The name in Hugging Face's files, which store a matrix as [out, in] too."""

    @property
    def transposed(self) -> bool:
        """Whether both files have the other axis first: every matrix but the embedding."""
        return len(self.shape) == 2 and self.path != EMBEDDING

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """As both files have it, were it whole."""
        return self.shape[::-1] if self.transposed else self.shape


def table(config: Config) -> list[Weight]:
    """Every weight of a model, in the order in which activations meet them."""
    c = config
    embedding = _names("tok_embeddings", "model.embed_tokens")
    rows = [Weight(EMBEDDING, (c.vocab_size, c.dim), *embedding)]
    for i in range(c.n_layers):
        for (group, name), shape in _layer(c):
            path = (f"layers_{i}", group, name)
            rows.append(Weight(path, shape, *_layer_names(i, group, name)))
    rows.append(Weight(("norm", "scale"), (c.dim,), *_names("norm", "model.norm")))
    if not c.tie_embeddings:
        rows.append(Weight(OUTPUT, (c.dim, c.vocab_size), *_names("output", "lm_head")))
    return rows


_HF = {
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "wq": "self_attn.q_proj",
    "wk": "self_attn.k_proj",
    "wv": "self_attn.v_proj",
    "wo": "self_attn.o_proj",
    "w1": "mlp.gate_proj",
    "w2": "mlp.down_proj",
    "w3": "mlp.up_proj",
}


def _names(meta: str, hf: str) -> tuple[str, str]:
    return f"{meta}.weight", f"{hf}.weight"


def _layer_names(layer: int, group: str, name: str) -> tuple[str, str]:
    """Both files call a norm's scale its "weight", and the bias `bq` the bias of `wq`."""
    if name == "scale":
        module, kind, hf = group, "weight", _HF[group]
    else:
        matrix = "w" + name[1:]
        module, kind = f"{group}.{matrix}", "weight" if name == matrix else "bias"
        hf = _HF[matrix]
    return f"layers.{layer}.{module}.{kind}", f"model.layers.{layer}.{hf}.{kind}"


def _layer(c: Config) -> list[tuple[tuple[str, str], tuple[int, ...]]]:
    query_dim, kv_dim = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    return [
        (("attention_norm", "scale"), (c.dim,)),
        *_linear("attention", "q", (c.dim, query_dim), c.attention_bias),
        *_linear("attention", "k", (c.dim, kv_dim), c.attention_bias),
        *_linear("attention", "v", (c.dim, kv_dim), c.attention_bias),
        *_linear("attention", "o", (query_dim, c.dim), c.attention_bias),
        (("ffn_norm", "scale"), (c.dim,)),
        *_linear("feed_forward", "1", (c.dim, c.hidden_dim), c.mlp_bias),
        *_linear("feed_forward", "3", (c.dim, c.hidden_dim), c.mlp_bias),
        *_linear("feed_forward", "2", (c.hidden_dim, c.dim), c.mlp_bias),
    ]


def _linear(
    group: str, letter: str, shape: tuple[int, int], bias: bool
) -> list[tuple[tuple[str, str], tuple[int, ...]]]:
    """A matrix, and its bias where the model has them."""
    biases = [((group, f"b{letter}"), shape[1:])] if bias else []
    return [((group, f"w{letter}"), shape), *biases]
