"""What a LLaMA model is, as one frozen value: the only thing about it that is not an array."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax

from llama_jax.field_docs import with_field_docs
from llama_jax.rope_scaling import (
    SCALINGS,
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    RopeScaling,
    YarnScaling,
)
from llama_jax.validation import check_count, check_flag, check_keys, check_number

__all__ = [
    "Config",
    "DynamicScaling",
    "LinearScaling",
    "Llama3Scaling",
    "RopeScaling",
    "YarnScaling",
    "check_count",
    "published",
]


@with_field_docs
@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Config:
    """The sizes and constants of one model. Frozen and hashable, hence static under `jax.jit`.

    No field that changes the model has a default: a wrong RoPE base reads as a model that
    almost works.
    """

    dim: int
    """Width of the residual stream, and of the embedding."""
    n_layers: int
    """How many blocks of attention and feed-forward follow each other."""
    n_heads: int
    """Query heads of a layer."""
    n_kv_heads: int
    """Key-value heads of a layer; a divisor of `n_heads`, each serving as many query heads."""
    head_dim: int
    """Width of one head; even, because RoPE rotates pairs."""
    hidden_dim: int
    """Width of the feed-forward layer."""
    vocab_size: int
    """Tokens that the model knows, by ids from 0."""
    norm_eps: float
    """What RMSNorm adds to the mean square."""
    rope_theta: float
    """Base of RoPE's frequencies: 10,000 in LLaMA 1 and 2, 500,000 in Llama 3."""
    rope_scaling: RopeScaling | None
    """How RoPE's frequencies are stretched for longer texts; None for not at all."""
    tie_embeddings: bool
    """Whether the output layer is the transposed embedding and stores no weight of its own."""
    attention_bias: bool
    """Whether queries, keys, values and the attention's output have biases."""
    mlp_bias: bool
    """Whether the three products of the feed-forward layer have biases."""
    max_seq_len: int
    """Positions the model was made for: generation stops there. No weight depends on it."""

    def __post_init__(self) -> None:
        for name, most in _COUNTS.items():
            check_count(name, getattr(self, name), most)
        check_number(self, "norm_eps", above=0.0)
        check_number(self, "rope_theta", above=1.0)
        if self.n_heads % self.n_kv_heads:
            raise ValueError(
                f"n_kv_heads={self.n_kv_heads} does not divide n_heads={self.n_heads}; "
                "every key-value head serves the same number of query heads"
            )
        if self.head_dim % 2:
            raise ValueError(
                f"head_dim={self.head_dim} is odd; RoPE rotates pairs, so it must be even"
            )
        for name in _FLAGS:
            check_flag(self, name)
        scaling = self.rope_scaling
        if scaling is not None and not isinstance(scaling, RopeScaling):
            kinds = ", ".join(kind.__name__ for kind in SCALINGS.values())
            raise ValueError(f"rope_scaling={scaling!r} must be None or one of {kinds}")
        if isinstance(scaling, DynamicScaling) and self.max_seq_len > scaling.original_max_seq_len:
            raise ValueError(
                f"max_seq_len={self.max_seq_len} must not exceed original_max_seq_len="
                f"{scaling.original_max_seq_len} under dynamic NTK scaling, whose frequencies "
                "depend beyond it on the length of the text; yarn scaling reaches further"
            )

    def replace(self, **changes: Any) -> Config:
        """This config with some fields changed, checked again."""
        return dataclasses.replace(self, **changes)

    def to_json(self) -> dict[str, Any]:
        """This config as plain JSON values; `from_json` is its inverse."""
        fields = dataclasses.asdict(self)
        if self.rope_scaling is not None:
            kind = next(k for k, cls in SCALINGS.items() if isinstance(self.rope_scaling, cls))
            fields["rope_scaling"] = {"type": kind, **fields["rope_scaling"]}
        return fields

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Config:
        """The config that `to_json` wrote. ValueError names a key that is missing or unknown."""
        fields = dict(check_keys(cls, fields, "config"))
        scaling = fields["rope_scaling"]
        if scaling is not None:
            if not isinstance(scaling, dict) or scaling.get("type") not in SCALINGS:
                raise ValueError(
                    f"rope_scaling={scaling!r} is unknown; its type is one of {sorted(SCALINGS)}"
                )
            kind = SCALINGS[scaling["type"]]
            given = {k: v for k, v in scaling.items() if k != "type"}
            fields["rope_scaling"] = kind(**check_keys(kind, given, "rope_scaling"))
        return cls(**fields)

    @classmethod
    def named(cls, name: str) -> Config:
        """A published model's config, by its file's name in `configs/models`: "llama-3.1-8b"."""
        known = published()
        if name not in known:
            raise ValueError(f"no config is named {name!r}; there are: {', '.join(known)}")
        return known[name]


def published() -> dict[str, Config]:
    """Every config in `configs/models`, by name."""
    here = Path(__file__).parent
    for folder in (here / "configs" / "models", here.parent / "configs" / "models"):
        if folder.is_dir():  # the first in an installed wheel, the second in a clone
            files = sorted(folder.glob("*.json"))
            return {f.stem: Config.from_json(json.loads(f.read_text())) for f in files}
    raise FileNotFoundError(f"configs/models lies neither in {here} nor beside it")


# At most: ten times what any published model has, and no more than a small file may ask for.
# A position is an int32, and so are an id and a size of XLA's.
_COUNTS = {
    "dim": 2**20,
    "n_layers": 4096,
    "n_heads": 2**16,
    "n_kv_heads": 2**16,
    "head_dim": 2**16,
    "hidden_dim": 2**24,
    "vocab_size": 2**26,
    "max_seq_len": 2**31 - 1,
}
_FLAGS = ("tie_embeddings", "attention_bias", "mlp_bias")
