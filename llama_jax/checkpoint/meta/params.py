"""Meta's params.json as a `Config`: its defaults, its arithmetic, and what it leaves unsaid."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llama_jax.checkpoint.files.json_file import Fields, read_object
from llama_jax.checkpoint.published import matching
from llama_jax.config import Config, Llama3Scaling

_KEYS = (
    *("dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "multiple_of", "norm_eps"),
    *("ffn_dim_multiplier", "rope_theta", "use_scaled_rope", "max_seq_len"),
    *("quantization_args", "lora_args"),  # these two are heeded only where tensors bear them out
)


MULTIPLE_OF, NORM_EPS = 256, 1e-5
"""The defaults of Meta's own `ModelArgs`."""


@dataclasses.dataclass(frozen=True)
class MetaParams:
    """What params.json says, checked."""

    config: Config
    """Untied; `vocab_size` and `max_seq_len` are 1 where the file does not say them."""
    says_vocab_size: bool
    left_out: tuple[str, ...]
    """The keys that have a default and are not there."""
    notes: tuple[str, ...]
    says_max_seq_len: bool
    lacks_rope_factor: bool
    """Whether this is Llama 3.2 1B or 3B, whose factor of 32 neither it nor Meta's code carries."""
    adapted: bool
    """Whether it speaks of quantization or LoRA, as files of ordinary models may too."""
    unknown_keys: tuple[str, ...]
    quantization: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What it says of quantization, heeded where the tensors bear it out."""
    adapter: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What it says of LoRA adapters, likewise."""


def read_params(file: Path) -> MetaParams:
    """Reads params.json; every error is a ValueError that names it."""
    given = read_object(file)
    try:
        return _parse(given)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def llama3_scaling(factor: float) -> Llama3Scaling:
    """Llama 3.x's RoPE scaling, of which only the factor ever differs."""
    return Llama3Scaling(
        factor=factor, low_freq_factor=1.0, high_freq_factor=4.0, original_max_seq_len=8192
    )


def asked_scaling(factor: float) -> Llama3Scaling | None:
    """The scaling that a caller asks for by its factor, of which 1 is none."""
    return None if factor == 1 else llama3_scaling(factor)


def default_max_seq_len(config: Config) -> int:
    """How far the model reaches: as published, or else as its family's constants suggest."""
    for known in matching(config).values():
        return known.max_seq_len
    if config.rope_scaling is not None:
        return 131072
    if config.rope_theta >= 1e6:
        return 16384  # Code Llama
    if config.rope_theta == 500000:
        return 8192  # Llama 3
    return 2048 if config.norm_eps == 1e-6 else 4096  # LLaMA, Llama 2


def lacks_rope_factor(dim: int, n_layers: int) -> bool:
    """Whether these are Llama 3.2 1B's or 3B's sizes, whose factor is 32 and not 8."""
    return (dim, n_layers) in ((2048, 16), (3072, 28))


def hidden_dim(dim: int, multiple_of: int, multiplier: float) -> int:
    """Meta's rule: both truncations happen, and 70B's width shows it."""
    hidden = int(multiplier * int(2 * (4 * dim) / 3))
    return multiple_of * ((hidden + multiple_of - 1) // multiple_of)


def _parse(given: dict[str, Any]) -> MetaParams:
    if isinstance(given.get("model"), dict):
        given = {**{key: value for key, value in given.items() if key != "model"}, **given["model"]}
    fields = Fields(given)
    fields.require("dim", "n_layers", "n_heads")
    defaults = ("vocab_size", "multiple_of", "norm_eps", "n_kv_heads")
    left_out = tuple(key for key in defaults if key not in fields)
    says_vocab_size = fields.raw("vocab_size") not in (None, -1)
    notes = []
    if "norm_eps" in left_out:
        notes.append(f"norm_eps {NORM_EPS:g} supplied, Meta's default: params.json has none")
    scaled = fields.flag("use_scaled_rope", default=False)
    dim, heads = fields.count("dim"), fields.count("n_heads")
    if dim % heads:
        raise ValueError(f"n_heads={heads} does not divide dim={dim}; the file is damaged")
    lacks_factor = scaled and lacks_rope_factor(dim, fields.count("n_layers"))
    config = Config(
        dim=dim,
        n_layers=fields.count("n_layers"),
        n_heads=heads,
        n_kv_heads=fields.count("n_kv_heads", default=heads),
        head_dim=dim // heads,
        hidden_dim=hidden_dim(
            dim,
            fields.count("multiple_of", default=MULTIPLE_OF),
            fields.number("ffn_dim_multiplier", default=1.0),
        ),
        vocab_size=fields.count("vocab_size") if says_vocab_size else 1,
        norm_eps=fields.number("norm_eps", default=NORM_EPS),
        rope_theta=fields.number("rope_theta", default=10000.0),
        rope_scaling=llama3_scaling(32.0 if lacks_factor else 8.0) if scaled else None,
        tie_embeddings=False,
        attention_bias=False,
        mlp_bias=False,
        max_seq_len=fields.count("max_seq_len", default=1),
    )
    return MetaParams(
        config=config,
        says_vocab_size=says_vocab_size,
        left_out=left_out,
        notes=tuple(notes),
        says_max_seq_len="max_seq_len" in fields,
        lacks_rope_factor=lacks_factor,
        adapted=bool(given.get("quantization_args") or given.get("lora_args")),
        quantization=_object(given.get("quantization_args")),
        adapter=_object(given.get("lora_args")),
        unknown_keys=tuple(
            sorted(key for key in given if key not in _KEYS and not key.startswith("vision_"))
        ),
    )


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
