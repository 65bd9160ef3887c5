"""RoPE's frequencies as some files store them, held against the base that their config states."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from llama_jax.config import Config, LinearScaling

_TOLERANCE = 0.05
"""The tolerance of the base: bfloat16 frequencies show it to 3 in 100."""


def rope_warnings(stored: Mapping[str, np.ndarray], config: Config, said: str) -> tuple[str, ...]:
    """A warning where stored frequencies were computed with another base than the config's.

    Only the config counts, as in transformers; a model trained with the other would read well for
    some twenty tokens and then write nonsense. `said` names the file that states the base.
    """
    for name, frequencies in stored.items():
        base = _base(frequencies, config)
        if base is not None and abs(base / config.rope_theta - 1) > _TOLERANCE:
            return (
                f"{name} is stored for a rope_theta of about {base:,.0f}, and {said} says "
                f"rope_theta={config.rope_theta:,.0f}, which is used; if the model writes "
                f"nonsense, correct {said}",
            )
    return ()


def _base(frequencies: np.ndarray, config: Config) -> float | None:
    """The base that makes these frequencies, base ** (-2i / head_dim); None if they are no such."""
    count = config.head_dim // 2
    if frequencies.shape != (count,) or count < 2 or frequencies.dtype.kind not in "fV":
        return None
    values = frequencies.astype(np.float64)
    # Scaling by wavelength leaves the short waves as they are, and linear scaling every ratio.
    plain = config.rope_scaling is None or isinstance(config.rope_scaling, LinearScaling)
    last = count - 1 if plain else max(1, count // 4)
    if not (np.all(np.isfinite(values)) and np.all(values > 0)) or values[last] >= values[0]:
        return None
    power = math.log(values[0] / values[last]) * count / last
    return math.exp(power) if power < 700 else math.inf
