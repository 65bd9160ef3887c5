"""The kinds of RoPE scaling, by which a model reads longer texts than it was first trained on."""

from __future__ import annotations

import dataclasses

from llama_jax.validation import check_count, check_flag, check_number


@dataclasses.dataclass(frozen=True)
class LinearScaling:
    """Every RoPE frequency divided by `factor` ("position interpolation", arXiv:2306.15595)."""

    factor: float

    def __post_init__(self) -> None:
        check_number(self, "factor", at_least=1.0)


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
        check_number(self, "factor", at_least=1.0)
        check_number(self, "low_freq_factor", above=0.0)
        check_number(self, "high_freq_factor", above=0.0)
        check_count("original_max_seq_len", self.original_max_seq_len)
        if self.high_freq_factor <= self.low_freq_factor:
            raise ValueError(
                f"high_freq_factor={self.high_freq_factor} must exceed "
                f"low_freq_factor={self.low_freq_factor}; Llama 3.1 has 4 and 1"
            )


@dataclasses.dataclass(frozen=True)
class YarnScaling:
    """YaRN (arXiv:2309.00071): slow RoPE frequencies are divided by `factor`, fast ones kept.

    Fast means more than `beta_fast` rotations in `original_max_seq_len` positions, slow fewer than
    `beta_slow`. Between the two the change is gradual, pair by pair.
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
        check_number(self, "factor", at_least=1.0)
        check_number(self, "beta_slow", above=0.0)
        check_number(self, "beta_fast", above=0.0)
        check_flag(self, "truncate")
        check_number(self, "attention_factor", above=0.0)
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
        check_number(self, "factor", at_least=1.0)
        check_count("original_max_seq_len", self.original_max_seq_len)


RopeScaling = LinearScaling | Llama3Scaling | YarnScaling | DynamicScaling
"""Any of the kinds."""
SCALINGS: dict[str, type[RopeScaling]] = {
    "linear": LinearScaling,
    "llama3": Llama3Scaling,
    "yarn": YarnScaling,
    "dynamic": DynamicScaling,
}
"""The kinds by their names in a config's JSON."""
