"""What other projects call each weight."""

from __future__ import annotations

from typing import NamedTuple

from llama_jax.config import Config
from llama_jax.weights.table import EMBEDDING, NORM, OUTPUT, WeightPath, weight_table


class WeightNames(NamedTuple):
    """One weight: where it is in our tree, its shape, and its names in others' files."""

    path: WeightPath
    shape: tuple[int, ...]
    """In our layout, where a matrix is [in, out] and the embedding [vocab, dim]."""
    meta: str
    """The name in Meta's files, which store a matrix as [out, in]. Meta's own models have no
    biases; theirs are the names that its modules would give them."""
    hf: str
    """The name in Hugging Face's files, which store a matrix as [out, in] too."""
    gguf: str
    """The name in a GGUF file, which stores a matrix as [out, in] too."""

    @property
    def transposed(self) -> bool:
        """Whether all three have the other axis first: every matrix but the embedding."""
        return len(self.shape) == 2 and self.path != EMBEDDING

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The shape in all three, if the tensor lies in one file."""
        return self.shape[::-1] if self.transposed else self.shape


def names_table(config: Config) -> list[WeightNames]:
    """Every weight of a model, in the order in which activations meet them."""
    return [
        WeightNames(path, row.shape, *_names(path)) for path, row in weight_table(config).items()
    ]


_OTHERS = {
    "attention_norm": ("input_layernorm", "attn_norm"),
    "ffn_norm": ("post_attention_layernorm", "ffn_norm"),
    "wq": ("self_attn.q_proj", "attn_q"),
    "wk": ("self_attn.k_proj", "attn_k"),
    "wv": ("self_attn.v_proj", "attn_v"),
    "wo": ("self_attn.o_proj", "attn_output"),
    "w1": ("mlp.gate_proj", "ffn_gate"),
    "w2": ("mlp.down_proj", "ffn_down"),
    "w3": ("mlp.up_proj", "ffn_up"),
}
_OUTSIDE_LAYERS = {
    EMBEDDING: ("tok_embeddings.weight", "model.embed_tokens.weight", "token_embd.weight"),
    NORM: ("norm.weight", "model.norm.weight", "output_norm.weight"),
    OUTPUT: ("output.weight", "lm_head.weight", "output.weight"),
}


def _names(path: WeightPath) -> tuple[str, str, str]:
    """All files call a norm's scale its "weight", and `bq` the bias of `wq`."""
    if path in _OUTSIDE_LAYERS:
        return _OUTSIDE_LAYERS[path]
    layer, group, name = path
    index = layer.removeprefix("layers_")
    if name == "scale":
        module, kind, (hf, gguf) = group, "weight", _OTHERS[group]
    else:
        matrix = "w" + name[1:]
        module, kind = f"{group}.{matrix}", "weight" if name == matrix else "bias"
        hf, gguf = _OTHERS[matrix]
    return (
        f"layers.{index}.{module}.{kind}",
        f"model.layers.{index}.{hf}.{kind}",
        f"blk.{index}.{gguf}.{kind}",
    )
