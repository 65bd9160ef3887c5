"""What a LLaMA model is, as one frozen value: the only thing about it that is not an array."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class LinearScaling:
    """Every RoPE frequency divided by `factor` ("position interpolation", arXiv:2306.15595)."""

    factor: float

    def __post_init__(self) -> None:
        _check_number(self, "factor", at_least=1.0)


@dataclasses.dataclass(frozen=True)
class Llama3Scaling:
    """Llama 3.1's scaling: a RoPE frequency is divided by `factor` where its wavelength is long.

    Long means above `original_max_seq_len / low_freq_factor` positions, short (left alone) below
    `original_max_seq_len / high_freq_factor`, and between the two the change is gradual.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_seq_len: int

    def __post_init__(self) -> None:
        _check_number(self, "factor", at_least=1.0)
        _check_number(self, "low_freq_factor", above=0.0)
        _check_number(self, "high_freq_factor", above=0.0)
        check_count("original_max_seq_len", self.original_max_seq_len)
        if self.high_freq_factor <= self.low_freq_factor:
            raise ValueError(
                f"high_freq_factor={self.high_freq_factor} must exceed "
                f"low_freq_factor={self.low_freq_factor}; Llama 3.1 has 4 and 1"
            )


@dataclasses.dataclass(frozen=True)
class YarnScaling:
    """YaRN (arXiv:2309.00071): slow RoPE frequencies are divided by `factor`, fast ones kept.

    Fast means more than `beta_fast` turns over `original_max_seq_len` positions, slow fewer than
    `beta_slow`; between the two the change is gradual, pair by pair.
    """

    factor: float
    beta_fast: float
    beta_slow: float
    truncate: bool
    """Whether the first and the last changing pair are rounded outwards to whole ones."""
    attention_factor: float
    """What the rotations of queries and keys are multiplied by: 1 leaves them rotations."""
    original_max_seq_len: int

    def __post_init__(self) -> None:
        _check_number(self, "factor", at_least=1.0)
        _check_number(self, "beta_slow", above=0.0)
        _check_number(self, "beta_fast", above=0.0)
        _check_flag(self, "truncate")
        _check_number(self, "attention_factor", above=0.0)
        check_count("original_max_seq_len", self.original_max_seq_len)
        if self.beta_fast <= self.beta_slow:
            raise ValueError(
                f"beta_fast={self.beta_fast} must exceed beta_slow={self.beta_slow}; "
                "YaRN's authors use 32 and 1"
            )


@dataclasses.dataclass(frozen=True)
class DynamicScaling:
    """Dynamic NTK scaling, which changes nothing up to `original_max_seq_len` positions.

    Beyond them every frequency depends on how long the text has become, and a cached key keeps
    the rotation of an earlier, shorter text: no function of the position, so a config with this
    scaling ends there. It is kept for those who take the model elsewhere.
    """

    factor: float
    original_max_seq_len: int

    def __post_init__(self) -> None:
        _check_number(self, "factor", at_least=1.0)
        check_count("original_max_seq_len", self.original_max_seq_len)


RopeScaling = LinearScaling | Llama3Scaling | YarnScaling | DynamicScaling
_SCALINGS: dict[str, type[RopeScaling]] = {
    "linear": LinearScaling,
    "llama3": Llama3Scaling,
    "yarn": YarnScaling,
    "dynamic": DynamicScaling,
}


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Config:
    """The sizes and constants of one model. Frozen and hashable, hence static under `jax.jit`.

    No field that changes the model has a default: a wrong RoPE base reads as a model that
    almost works.
    """

    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    hidden_dim: int
    """Width of the feed-forward layer."""
    vocab_size: int
    norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None
    tie_embeddings: bool
    """Whether the output layer is the transposed embedding and stores no weight of its own."""
    attention_bias: bool
    """Whether queries, keys, values and the attention's output have biases."""
    mlp_bias: bool
    """Whether the three products of the feed-forward layer have biases."""
    max_seq_len: int
    """Positions the model was made for: generation stops there. No weight depends on it."""

    def __post_init__(self) -> None:
        for name in _COUNTS:
            check_count(name, getattr(self, name))
        _check_number(self, "norm_eps", above=0.0)
        _check_number(self, "rope_theta", above=1.0)
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
            _check_flag(self, name)
        scaling = self.rope_scaling
        if scaling is not None and not isinstance(scaling, RopeScaling):
            kinds = ", ".join(kind.__name__ for kind in _SCALINGS.values())
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
            kind = next(k for k, cls in _SCALINGS.items() if isinstance(self.rope_scaling, cls))
            fields["rope_scaling"] = {"type": kind, **fields["rope_scaling"]}
        return fields

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Config:
        """The config that `to_json` wrote. ValueError names a key that is missing or unknown."""
        fields = dict(_check_keys(cls, fields, "config"))
        scaling = fields["rope_scaling"]
        if scaling is not None:
            if not isinstance(scaling, dict) or scaling.get("type") not in _SCALINGS:
                raise ValueError(
                    f"rope_scaling={scaling!r} is unknown; its type is one of {sorted(_SCALINGS)}"
                )
            kind = _SCALINGS[scaling["type"]]
            given = {k: v for k, v in scaling.items() if k != "type"}
            fields["rope_scaling"] = kind(**_check_keys(kind, given, "rope_scaling"))
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


_COUNTS = (
    "dim",
    "n_layers",
    "n_heads",
    "n_kv_heads",
    "head_dim",
    "hidden_dim",
    "vocab_size",
    "max_seq_len",
)
_FLAGS = ("tie_embeddings", "attention_bias", "mlp_bias")


def check_count(name: str, value: Any) -> None:
    """ValueError where `value` is no positive integer."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}={value!r} must be a positive integer")


def _check_flag(owner: Any, name: str) -> None:
    value = getattr(owner, name)
    if not isinstance(value, bool):
        raise ValueError(f"{name}={value!r} must be True or False")


def _check_number(
    owner: Any, name: str, *, at_least: float = -math.inf, above: float = -math.inf
) -> None:
    """Checks a real field and stores it as a float, so that 10000 and 10000.0 are one config."""
    value = getattr(owner, name)
    real = isinstance(value, int | float) and not isinstance(value, bool)
    # An integer may be too large to be a float at all, and is compared as it is.
    if not real or not abs(value) <= sys.float_info.max or value < at_least or value <= above:
        bound = f"at least {at_least}" if at_least > -math.inf else f"above {above}"
        raise ValueError(f"{name}={value!r} must be a finite number {bound}")
    object.__setattr__(owner, name, float(value))


def _check_keys(cls: type, fields: Any, what: str) -> dict[str, Any]:
    if not isinstance(fields, dict):
        raise ValueError(f"{what} must be a JSON object, not {type(fields).__name__}")
    names = {f.name for f in dataclasses.fields(cls)}
    if missing := sorted(names - fields.keys()):
        raise ValueError(f"{what} lacks {', '.join(missing)}")
    if unknown := sorted(fields.keys() - names):
        raise ValueError(f"{what} has unknown keys {', '.join(unknown)}; it knows {sorted(names)}")
    return fields
