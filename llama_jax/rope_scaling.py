"""The kinds of RoPE scaling, by which a model reads longer texts than it was first trained on."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from llama_jax.ops import rope
from llama_jax.ops.rope import Frequencies
from llama_jax.validation import check_count, check_flag, check_number


class _OfFrequencies:
    """A scaling that changes frequencies alone."""

    attention_factor: ClassVar[float] = 1.0
    """The factor of rotated queries and keys."""


@dataclasses.dataclass(frozen=True)
class LinearScaling(_OfFrequencies):
    """Every RoPE frequency divided by `factor` ("position interpolation", arXiv:2306.15595)."""

    factor: float

    def __post_init__(self) -> None:
        check_number(self, "factor", at_least=1.0)

    def scaled(self, frequencies: Frequencies, theta: float) -> Frequencies:
        """The scaled frequencies of a head, from the plain ones of the base `theta`."""
        return rope.scale_linear(frequencies, self.factor)


@dataclasses.dataclass(frozen=True)
class Llama3Scaling(_OfFrequencies):
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

    def scaled(self, frequencies: Frequencies, theta: float) -> Frequencies:
        """The scaled frequencies of a head, from the plain ones of the base `theta`."""
        return rope.scale_llama3(frequencies, **vars(self))


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
    """Whether the ends of the range of changing pairs are rounded to whole pairs."""
    attention_factor: float
    """The factor of rotated queries and keys; 1 changes nothing."""
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

    def scaled(self, frequencies: Frequencies, theta: float) -> Frequencies:
        """The scaled frequencies of a head, from the plain ones of the base `theta`."""
        given = {k: v for k, v in vars(self).items() if k != "attention_factor"}
        return rope.scale_yarn(frequencies, theta=theta, **given)


@dataclasses.dataclass(frozen=True)
class DynamicScaling(_OfFrequencies):
    """Dynamic NTK scaling, which changes nothing up to `original_max_seq_len` positions.

    Beyond them the frequencies depend on the length of the text, so a rotation would be no function
    of the position. A config with this scaling therefore ends there. `export` writes the scaling
    back.
    """

    factor: float
    original_max_seq_len: int

    def __post_init__(self) -> None:
        check_number(self, "factor", at_least=1.0)
        check_count("original_max_seq_len", self.original_max_seq_len)

    def scaled(self, frequencies: Frequencies, theta: float) -> Frequencies:
        """The plain frequencies: a config with this scaling ends where they would change."""
        return frequencies


RopeScaling = LinearScaling | Llama3Scaling | YarnScaling | DynamicScaling
"""Any of the kinds."""
SCALINGS: dict[str, type[RopeScaling]] = {
    "linear": LinearScaling,
    "llama3": Llama3Scaling,
    "yarn": YarnScaling,
    "dynamic": DynamicScaling,
}
"""The kinds by their names in a config's JSON."""
