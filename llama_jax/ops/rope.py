"""Rotary position embedding (arXiv:2104.09864) as complex multiplication.

Adjacent elements (2i, 2i + 1) of a head are the real and imaginary part of one complex number. It
rotates by `position * frequency[i]` radians. Frequencies are constants of a model, so NumPy
computes them once, at trace time, and rounds where Meta's code rounds: at position 100,000 the last
bit of a frequency near 1 is 0.006 rad.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex64, Float, Float32, Int

Frequencies = Float32[np.ndarray, " half_head_dim"]
"""How far each pair of numbers rotates from one position to the next, in radians."""


def frequencies(head_dim: int, theta: float) -> Frequencies:
    """`theta ** (-2i / head_dim)` for each pair i, in radians per position.

    Rounded to float32 where Meta's code rounds: the exponent, the power, and its inverse.
    """
    exponents = (np.arange(0, head_dim, 2) / head_dim).astype(np.float32)
    powers = np.power(np.float64(theta), exponents.astype(np.float64)).astype(np.float32)
    return np.float32(1) / powers


def scale_linear(frequencies: Frequencies, factor: float) -> Frequencies:
    """Position interpolation: every position counts as `position / factor` (arXiv:2306.15595)."""
    return frequencies / np.float32(factor)


def scale_llama3(
    frequencies: Frequencies,
    *,
    factor: float,
    low_freq_factor: float,
    high_freq_factor: float,
    original_max_seq_len: int,
) -> Frequencies:
    """Llama 3.1's scaling, by wavelength: long waves slow down by `factor`, short ones stay.

    Between `original_max_seq_len / high_freq_factor` and `original_max_seq_len / low_freq_factor`
    positions per turn it goes from one to the other (Meta's `apply_scaling`).
    """
    wavelengths = 2 * np.pi / frequencies.astype(np.float64)
    turns = original_max_seq_len / wavelengths
    kept = np.clip((turns - low_freq_factor) / (high_freq_factor - low_freq_factor), 0.0, 1.0)
    return (kept * frequencies + (1 - kept) * frequencies / factor).astype(np.float32)


def scale_yarn(
    frequencies: Frequencies,
    *,
    theta: float,
    factor: float,
    beta_fast: float,
    beta_slow: float,
    truncate: bool,
    original_max_seq_len: int,
) -> Frequencies:
    """YaRN's scaling (arXiv:2309.00071): slow pairs are divided by `factor`, fast ones stay.

    Between them the change is linear in the pair's index: from the pair that makes `beta_fast`
    rotations in `original_max_seq_len` positions to the one that makes `beta_slow`, as in
    transformers.
    """
    head_dim = 2 * len(frequencies)

    def pair_that_turns(times: float) -> float:
        return (
            head_dim * math.log(original_max_seq_len / (times * 2 * math.pi)) / math.log(theta) / 2
        )

    low, high = pair_that_turns(beta_fast), pair_that_turns(beta_slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    width = high - low if high != low else 0.001
    slowed = np.clip((np.arange(len(frequencies)) - low) / width, 0.0, 1.0)
    return (slowed * frequencies / factor + (1 - slowed) * frequencies).astype(np.float32)


def rotations(
    positions: Int[Array, "batch time"], frequencies: Frequencies
) -> Complex64[Array, "batch time half_head_dim"]:
    """The unit complex number by which each pair rotates at each position; angles in float32."""
    angles = positions[..., None].astype(jnp.float32) * frequencies
    return jax.lax.complex(jnp.cos(angles), jnp.sin(angles))


def rotate(
    x: Float[Array, "batch time heads head_dim"],
    rotations: Complex64[Array, "batch time half_head_dim"],
) -> Float[Array, "batch time heads head_dim"]:
    """Rotates each pair of each head of `x`, in float32, and returns to the dtype of `x`."""
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
    rotated = jax.lax.complex(pairs[..., 0], pairs[..., 1]) * rotations[:, :, None, :]
    pairs = jnp.stack([jax.lax.real(rotated), jax.lax.imag(rotated)], axis=-1)
    return pairs.reshape(x.shape).astype(x.dtype)
