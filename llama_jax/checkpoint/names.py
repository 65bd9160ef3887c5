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

    @property
    def transposed(self) -> bool:
        """Whether both files have the other axis first: every matrix but the embedding."""
        return len(self.shape) == 2 and self.path != EMBEDDING

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The shape in both files, if the tensor lies in one file."""
        return self.shape[::-1] if self.transposed else self.shape


def names_table(config: Config) -> list[WeightNames]:
    """Every weight of a model, in the order in which activations meet them."""
    return [
        WeightNames(path, row.shape, *_names(path)) for path, row in weight_table(config).items()
    ]


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
_OUTSIDE_LAYERS = {
    EMBEDDING: ("tok_embeddings.weight", "model.embed_tokens.weight"),
    NORM: ("norm.weight", "model.norm.weight"),
    OUTPUT: ("output.weight", "lm_head.weight"),
}


def _names(path: WeightPath) -> tuple[str, str]:
    """Both files call a norm's scale its "weight", and `bq` the bias of `wq`."""
    if path in _OUTSIDE_LAYERS:
        return _OUTSIDE_LAYERS[path]
    layer, group, name = path
    index = layer.removeprefix("layers_")
    if name == "scale":
        module, kind, hf = group, "weight", _HF[group]
    else:
        matrix = "w" + name[1:]
        module, kind = f"{group}.{matrix}", "weight" if name == matrix else "bias"
        hf = _HF[matrix]
    return f"layers.{index}.{module}.{kind}", f"model.layers.{index}.{hf}.{kind}"
