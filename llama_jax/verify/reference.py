"""LLaMA in float64 NumPy: what the model computes, said a second time and plainly.

It shares nothing with `model/transformer.py` and `ops`, so no mistake of theirs is repeated here. A
weight is read a band at a time, so the memory this takes does not grow with the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, assert_never

import numpy as np

from llama_jax.config import Config, DynamicScaling, LinearScaling, Llama3Scaling, YarnScaling

Layer = Mapping[tuple[str, ...], Any]
"""A layer's weights, by what follows the layer in their paths: ("attention", "wq")."""

BAND = 2**22
"""About how many numbers of a weight are held at once."""


def reference_logits(
    config: Config, weights: Mapping[tuple[str, ...], Any], tokens: Any, positions: Any
) -> np.ndarray:
    """The logits that follow each token: [batch, time, vocab], in float64.

    `weights` has, by path, matrices that are [in, out] and give a part of themselves when sliced:
    arrays, or the tensors of an opened checkpoint. `tokens` and `positions` are [batch, time].
    """
    c = config
    tokens, positions = np.asarray(tokens), np.asarray(positions)
    embedding = weights["tok_embeddings", "weight"]
    turns = np.exp(1j * angles(c, positions))
    if isinstance(c.rope_scaling, YarnScaling):
        turns *= c.rope_scaling.attention_factor
    visible = positions[:, None, :] <= positions[:, :, None]
    x = np.stack([[_float64(embedding[t : t + 1, :])[0] for t in row] for row in tokens])
    for i in range(c.n_layers):
        layer = {path[1:]: w for path, w in weights.items() if path[0] == f"layers_{i}"}
        h = rms_norm(x, layer["attention_norm", "scale"], c.norm_eps)
        x = x + attention(c, layer, h, turns, visible)
        h = rms_norm(x, layer["ffn_norm", "scale"], c.norm_eps)
        x = x + feed_forward(layer, h)
    x = rms_norm(x, weights["norm", "scale"], c.norm_eps)
    if c.tie_embeddings:
        return np.concatenate(
            [x @ _float64(embedding[rows, :]).T for rows in _bands(c.vocab_size, c.dim)], axis=-1
        )
    return times(x, weights["output", "weight"])


def attention(c: Config, layer: Layer, x: Any, turns: Any, visible: Any) -> np.ndarray:
    """Grouped-query attention; query head h reads key-value head `h // (n_heads / n_kv_heads)`."""
    batch, time, _ = x.shape
    q, k, v = (
        linear(x, layer, "attention", name).reshape(batch, time, -1, c.head_dim)
        for name in ("q", "k", "v")
    )
    q, k = rotate(q, turns), rotate(k, turns)
    k, v = (np.repeat(a, c.n_heads // c.n_kv_heads, axis=2) for a in (k, v))
    scores = np.einsum("bthd,bshd->bhts", q, k) / np.sqrt(c.head_dim)
    scores = np.where(visible[:, None], scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    out = np.einsum("bhts,bshd->bthd", weights, v).reshape(batch, time, -1)
    return linear(out, layer, "attention", "o")


def feed_forward(layer: Layer, x: np.ndarray) -> np.ndarray:
    """`w2(silu(w1(x)) * w3(x))`."""
    gate = linear(x, layer, "feed_forward", "1")
    with np.errstate(over="ignore"):  # silu of a large negative number is 0
        gate = gate / (1 + np.exp(-gate))
    return linear(gate * linear(x, layer, "feed_forward", "3"), layer, "feed_forward", "2")


def linear(x: np.ndarray, layer: Layer, group: str, name: str) -> np.ndarray:
    """`x` times the matrix `w<name>`, and the bias `b<name>` added where the model has one."""
    y = times(x, layer[group, f"w{name}"])
    bias = layer.get((group, f"b{name}"))
    return y if bias is None else y + _float64(bias[...])


def rms_norm(x: np.ndarray, scale: Any, eps: float) -> np.ndarray:
    """Each vector over its root-mean-square, times `scale`."""
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * _float64(scale[...])


def rotate(x: np.ndarray, turns: np.ndarray) -> np.ndarray:
    """Each pair of neighbours (2i, 2i + 1) of each head is a complex number, and turns."""
    turned = (x[..., 0::2] + 1j * x[..., 1::2]) * turns[:, :, None, :]
    return np.stack([turned.real, turned.imag], axis=-1).reshape(x.shape)


def angles(c: Config, positions: np.ndarray) -> np.ndarray:
    """By how much each pair turns at each position, in radians.

    The one place that rounds to float32, because the models were trained with that: position
    100,000 turns by an angle that is 0.004 off.
    """
    exponents = (np.arange(0, c.head_dim, 2) / c.head_dim).astype(np.float32)
    powers = (c.rope_theta ** exponents.astype(np.float64)).astype(np.float32)
    slowed = [_slowed(float(f), pair, c) for pair, f in enumerate(np.float32(1) / powers)]
    turned = positions[..., None].astype(np.float32) * np.array(slowed, np.float32)
    return turned.astype(np.float64)


def _slowed(frequency: float, pair: int, c: Config) -> float:
    """The frequency of a pair after RoPE's scaling, as those who invented each kind state it."""
    match c.rope_scaling:
        case LinearScaling(factor):
            return frequency / factor
        case Llama3Scaling(factor, low, high, original):
            wavelength = 2 * np.pi / frequency
            if wavelength > original / low:
                return frequency / factor
            if wavelength < original / high:
                return frequency
            kept = (original / wavelength - low) / (high - low)
            return (1 - kept) * frequency / factor + kept * frequency
        case YarnScaling() as s:
            first, last = (_pair_that_turns(beta, c, s) for beta in (s.beta_fast, s.beta_slow))
            if s.truncate:
                first, last = np.floor(first), np.ceil(last)
            first, last = max(first, 0), min(last, c.head_dim - 1)
            slow = np.clip((pair - first) / max(last - first, 0.001), 0, 1)
            return (1 - slow) * frequency + slow * frequency / s.factor
        case None | DynamicScaling():  # the latter's change lies beyond the model's positions
            return frequency
    assert_never(c.rope_scaling)


def _pair_that_turns(times: float, c: Config, s: YarnScaling) -> float:
    """The pair, in fractions of one, that turns so often over the original positions."""
    wavelength = s.original_max_seq_len / times
    return c.head_dim / 2 * np.log(wavelength / (2 * np.pi)) / np.log(c.rope_theta)


def times(x: np.ndarray, weight: Any) -> np.ndarray:
    """`x @ weight`, over bands of the weight's columns."""
    rows, columns = weight.shape
    vectors = x.reshape(-1, rows)  # one product of matrices, where NumPy would make one a batch row
    bands = [vectors @ _float64(weight[:, band]) for band in _bands(columns, rows)]
    return np.concatenate(bands, axis=-1).reshape(*x.shape[:-1], columns)


def _bands(count: int, width: int) -> list[slice]:
    step = max(512, BAND // width // 512 * 512)
    return [slice(start, min(start + step, count)) for start in range(0, count, step)]


def _float64(part: Any) -> np.ndarray:
    return np.asarray(part).astype(np.float64)
