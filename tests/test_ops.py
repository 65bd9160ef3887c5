"""Each function against an independent statement of it in NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax.ops import rope
from llama_jax.ops.attention import Span, attention
from llama_jax.ops.linear import linear
from llama_jax.ops.norm import rms_norm
from llama_jax.ops.swiglu import swiglu


def normal(seed, *shape, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(seed), shape).astype(dtype)


def test_rms_norm_is_its_formula():
    x, scale = normal(0, 3, 16), normal(1, 16)
    x64 = np.float64(x)
    wanted = x64 / np.sqrt((x64**2).mean(-1, keepdims=True) + 1e-5) * np.float64(scale)
    np.testing.assert_allclose(rms_norm(x, scale, 1e-5), wanted, rtol=1e-6)


def test_rms_norm_takes_the_mean_in_float32_and_rounds_before_the_scale():
    # bfloat16 cannot count to 4096 ones: a mean taken in it would be far off.
    x = jnp.full((1, 4096), 3.0, jnp.bfloat16)
    assert (rms_norm(x, jnp.ones(4096, jnp.bfloat16), 0.0) == 1).all()
    x, scale = normal(2, 4, 64, dtype=jnp.bfloat16), normal(3, 64, dtype=jnp.bfloat16)
    unit = rms_norm(x, jnp.ones(64, jnp.bfloat16), 1e-5)
    assert (rms_norm(x, scale, 1e-5) == unit * scale).all()


def test_swiglu_is_its_formula():
    gate, up = normal(0, 2, 8), normal(1, 2, 8)
    wanted = np.float64(gate) / (1 + np.exp(-np.float64(gate))) * np.float64(up)
    np.testing.assert_allclose(swiglu(gate, up), wanted, rtol=1e-5, atol=1e-7)


def test_linear_multiplies_by_an_in_out_weight():
    x, w = normal(0, 2, 3, 8), normal(1, 8, 5)
    np.testing.assert_allclose(linear(x, w), np.float64(x) @ np.float64(w), rtol=1e-5, atol=1e-6)


def test_linear_lets_a_weight_multiply_itself():
    @jax.tree_util.register_dataclass
    @dataclasses.dataclass
    class Doubled:
        w: jax.Array

        def matmul(self, x):
            return 2 * (x @ self.w)

    x, w = normal(0, 2, 8), normal(1, 8, 5)
    np.testing.assert_allclose(linear(x, Doubled(w)), 2 * linear(x, w), rtol=1e-5)


# RoPE


def test_rotation_turns_adjacent_pairs_by_position_times_frequency():
    x, positions = normal(0, 1, 3, 2, 8), jnp.array([[0, 5, 1000]])
    turned = rope.rotate(x, rope.rotations(positions, rope.frequencies(8, 10000.0)))
    for time, position in enumerate([0, 5, 1000]):
        for i in range(4):
            a = position * 10000.0 ** (-2 * i / 8)
            matrix = np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]])
            pair = np.float64(x[0, time, :, 2 * i : 2 * i + 2])
            wanted = pair @ matrix.T
            np.testing.assert_allclose(turned[0, time, :, 2 * i : 2 * i + 2], wanted, atol=1e-4)


def test_rotation_keeps_lengths_and_depends_on_the_distance_alone():
    q, k, f = normal(0, 1, 1, 1, 64), normal(1, 1, 1, 1, 64), rope.frequencies(64, 500000.0)

    def score(m, n):
        at = lambda x, p: rope.rotate(x, rope.rotations(jnp.array([[p]]), f))  # noqa: E731
        return float(jnp.sum(at(q, m) * at(k, n)))

    assert score(7, 3) == pytest.approx(score(1007, 1003), abs=1e-3)
    turned = rope.rotate(q, rope.rotations(jnp.array([[99999]]), f))
    np.testing.assert_allclose(jnp.linalg.norm(turned), jnp.linalg.norm(q), rtol=1e-5)


def test_rotation_is_computed_in_float32_for_bfloat16_heads():
    x, rotations = (
        normal(0, 1, 1, 2, 16),
        rope.rotations(jnp.array([[12345]]), rope.frequencies(16, 1e4)),
    )
    half = x.astype(jnp.bfloat16)
    turned = rope.rotate(half, rotations)
    assert turned.dtype == jnp.bfloat16
    assert (turned == rope.rotate(half.astype(jnp.float32), rotations).astype(jnp.bfloat16)).all()


@pytest.mark.parametrize("theta", [10000.0, 500000.0, 1000000.0])
def test_angles_stay_true_at_far_positions(theta):
    positions = np.array([[0, 1, 8191, 131071]])
    f = rope.frequencies(128, theta)
    turns = rope.rotations(jnp.asarray(positions), f)
    angles = np.float64(np.float32(positions[..., None]) * f)  # float32 angles, as Meta has them
    np.testing.assert_allclose(turns, np.exp(1j * angles), atol=2e-6)


def test_linear_scaling_divides_every_frequency():
    f = rope.frequencies(64, 10000.0)
    np.testing.assert_array_equal(rope.scale_linear(f, 4.0), f / np.float32(4))


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama3_scaling_is_metas_rule_wavelength_by_wavelength(factor):
    f = rope.frequencies(128, 500000.0)
    scaled = rope.scale_llama3(
        f, factor=factor, low_freq_factor=1.0, high_freq_factor=4.0, original_max_seq_len=8192
    )
    kinds = set()
    for before, after in zip(np.float64(f), np.float64(scaled), strict=True):
        wavelength = 2 * np.pi / before
        if wavelength < 8192 / 4:
            kind, wanted = "short", before
        elif wavelength > 8192 / 1:
            kind, wanted = "long", before / factor
        else:
            s = (8192 / wavelength - 1) / (4 - 1)
            kind, wanted = "between", (1 - s) * before / factor + s * before
        kinds.add(kind)
        assert after == pytest.approx(wanted, rel=2e-7)
    assert kinds == {"short", "long", "between"}


@pytest.mark.parametrize("truncate", [True, False])
def test_yarn_scaling_is_the_papers_rule_pair_by_pair(truncate):
    theta, factor, original = 10000.0, 8.0, 4096
    f = rope.frequencies(128, theta)
    scaled = rope.scale_yarn(
        f,
        theta=theta,
        factor=factor,
        beta_fast=32.0,
        beta_slow=1.0,
        truncate=truncate,
        original_max_seq_len=original,
    )
    # Pair i turns original * theta ** (-2i / 128) / 2 pi times; solved for i:
    first, last = (64 * np.log(original / (2 * np.pi * n)) / np.log(theta) for n in (32, 1))
    if truncate:
        first, last = np.floor(first), np.ceil(last)
    for i, (before, after) in enumerate(zip(np.float64(f), np.float64(scaled), strict=True)):
        kept = 1 - min(max((i - first) / (last - first), 0), 1)
        assert after == pytest.approx(before * kept + before / factor * (1 - kept), rel=2e-7)
    assert scaled[0] == f[0]
    assert scaled[-1] == pytest.approx(f[-1] / factor)


# Attention


def attention_in_numpy(q, k, v, visible):
    """Head by head and query by query, in float64; k and v [batch, kv_heads, span, head_dim]."""
    q, k, v = np.float64(q), np.float64(k), np.float64(v)
    batch, time, heads, head_dim = q.shape
    out = np.zeros_like(q)
    for b in range(batch):
        for h in range(heads):
            shared = h // (heads // k.shape[1])
            for t in range(time):
                seen = np.flatnonzero(visible[b, t])
                scores = k[b, shared, seen] @ q[b, t, h] / np.sqrt(head_dim)
                weights = np.exp(scores - scores.max())
                out[b, t, h] = weights / weights.sum() @ v[b, shared, seen]
    return out


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_attention_is_its_formula_whatever_the_groups(kv_heads):
    q, k, v = normal(0, 2, 5, 4, 8), normal(1, 2, kv_heads, 5, 8), normal(2, 2, kv_heads, 5, 8)
    visible = np.broadcast_to(np.tril(np.ones((5, 5), bool)), (2, 5, 5))
    out = attention(q, [Span(k, v, jnp.asarray(visible))])
    np.testing.assert_allclose(out, attention_in_numpy(q, k, v, visible), rtol=1e-5, atol=1e-6)


def test_attention_over_two_spans_is_attention_over_their_union():
    q, k, v = normal(0, 2, 3, 4, 8), normal(1, 2, 2, 9, 8), normal(2, 2, 2, 9, 8)
    visible = jax.random.bernoulli(jax.random.key(3), 0.5, (2, 3, 9)).at[:, :, 0].set(True)
    cut = [Span(k[:, :, s], v[:, :, s], visible[:, :, s]) for s in (slice(0, 4), slice(4, 9))]
    whole = attention(q, [Span(k, v, visible)])
    np.testing.assert_allclose(attention(q, cut), whole, rtol=1e-5, atol=1e-6)


def test_attention_ignores_a_span_of_which_nothing_is_visible():
    q, k, v = normal(0, 1, 2, 2, 8), normal(1, 1, 2, 4, 8), normal(2, 1, 2, 4, 8)
    everything, nothing = jnp.ones((1, 2, 4), bool), jnp.zeros((1, 2, 4), bool)
    hidden = Span(jnp.full_like(k, 1e30), jnp.full_like(v, 1e30), nothing)
    alone = attention(q, [Span(k, v, everything)])
    np.testing.assert_array_equal(attention(q, [hidden, Span(k, v, everything)]), alone)


def test_softmax_is_float32_for_bfloat16_heads():
    # 400 equal scores: bfloat16 would lose most of a sum of 400 weights.
    q, k = jnp.zeros((1, 1, 1, 8), jnp.bfloat16), jnp.zeros((1, 1, 400, 8), jnp.bfloat16)
    v = jnp.ones((1, 1, 400, 8), jnp.bfloat16)
    out = attention(q, [Span(k, v, jnp.ones((1, 1, 400), bool))])
    np.testing.assert_allclose(np.float32(out), 1, rtol=0.01)
