"""Meta's params.json as a `Config`: its defaults, its arithmetic, and what it leaves unsaid."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from llama_jax.checkpoint.family import matching
from llama_jax.config import Config, Llama3Scaling

_MAX_BYTES = 2**20
_KEYS = (
    *("dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "multiple_of", "norm_eps"),
    *("ffn_dim_multiplier", "rope_theta", "use_scaled_rope", "max_seq_len"),
    *("quantization_args", "lora_args"),  # these two are heeded only where tensors bear them out
)


@dataclasses.dataclass(frozen=True)
class MetaParams:
    """What params.json says, checked."""

    config: Config
    """Untied; `vocab_size` and `max_seq_len` are 1 where the file does not say them."""
    says_vocab_size: bool
    says_max_seq_len: bool
    lacks_rope_factor: bool
    """Whether this is Llama 3.2 1B or 3B, whose factor of 32 neither it nor Meta's code carries."""
    adapted: bool
    """Whether it speaks of quantization or LoRA, as files of ordinary models may too."""
    unknown_keys: tuple[str, ...]


def read_params(file: Path) -> MetaParams:
    """Reads params.json; every error is a ValueError that names it."""
    with file.open("rb") as opened:
        text = opened.read(_MAX_BYTES + 1)
    if len(text) > _MAX_BYTES:
        raise ValueError(f"{file} has more than {_MAX_BYTES:,} bytes; it is not Meta's params.json")
    try:
        given = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not JSON ({error}); download or copy it again") from error
    try:
        return _parse(given)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def llama3_scaling(factor: float) -> Llama3Scaling:
    """Llama 3.x's RoPE scaling, of which only the factor ever differs."""
    return Llama3Scaling(
        factor=factor, low_freq_factor=1.0, high_freq_factor=4.0, original_max_seq_len=8192
    )


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


def _parse(given: Any) -> MetaParams:
    if isinstance(given, dict) and isinstance(given.get("model"), dict):
        given = {**{key: value for key, value in given.items() if key != "model"}, **given["model"]}
    if not isinstance(given, dict):
        raise ValueError(f"it holds a {type(given).__name__}; Meta's is an object of sizes")
    says_vocab_size = given.get("vocab_size") != -1
    lacks_rope_factor = _flag(given, "use_scaled_rope") and (
        (given.get("dim"), given.get("n_layers")) in ((2048, 16), (3072, 28))
    )
    dim, heads = _count(given, "dim"), _count(given, "n_heads")
    if dim % heads:
        raise ValueError(f"n_heads={heads} does not divide dim={dim}; the file is damaged")
    config = Config(
        dim=dim,
        n_layers=_count(given, "n_layers"),
        n_heads=heads,
        n_kv_heads=_count(given, "n_kv_heads", default=heads),
        head_dim=dim // heads,
        hidden_dim=_hidden_dim(given, dim),
        vocab_size=_count(given, "vocab_size") if says_vocab_size else 1,
        norm_eps=_number(given, "norm_eps"),
        rope_theta=_number(given, "rope_theta", default=10000.0),
        rope_scaling=llama3_scaling(32.0 if lacks_rope_factor else 8.0)
        if _flag(given, "use_scaled_rope")
        else None,
        tie_embeddings=False,
        max_seq_len=_count(given, "max_seq_len", default=1),
    )
    return MetaParams(
        config=config,
        says_vocab_size=says_vocab_size,
        says_max_seq_len=given.get("max_seq_len") is not None,
        lacks_rope_factor=lacks_rope_factor,
        adapted=bool(given.get("quantization_args") or given.get("lora_args")),
        unknown_keys=tuple(
            sorted(key for key in given if key not in _KEYS and not key.startswith("vision_"))
        ),
    )


def _hidden_dim(given: dict[str, Any], dim: int) -> int:
    """Meta's rule: both truncations happen, and 70B's width shows it."""
    multiple = _count(given, "multiple_of")
    hidden = int(2 * (4 * dim) / 3)
    hidden = int(_number(given, "ffn_dim_multiplier", default=1.0) * hidden)
    return multiple * ((hidden + multiple - 1) // multiple)


def _get(given: dict[str, Any], key: str, default: Any) -> Any:
    value = default if given.get(key) is None else given[key]
    if value is None:
        raise ValueError(f"it lacks {key}, which Meta's always has; the file is damaged")
    return value


def _count(given: dict[str, Any], key: str, default: int | None = None) -> int:
    value = _get(given, key, default)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**31:
        raise ValueError(f"{key}={_shown(value)} must be a positive integer below 2**31")
    return value


def _number(given: dict[str, Any], key: str, default: float | None = None) -> float:
    value = _get(given, key, default)
    real = isinstance(value, int | float) and not isinstance(value, bool)
    if not real or not 0 < value < 2**63:
        raise ValueError(f"{key}={_shown(value)} must be a positive number")
    return value


def _flag(given: dict[str, Any], key: str) -> bool:
    value = _get(given, key, False)
    if not isinstance(value, bool):
        raise ValueError(f"{key}={_shown(value)} must be true or false")
    return value


def _shown(value: Any) -> str:
    text = f"a {type(value).__name__}" if isinstance(value, dict | list) else json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
