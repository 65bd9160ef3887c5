"""Each function against an independent statement of it in NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax.kernels import linear, linear_transposed
from llama_jax.kernels.blockwise import OwnKeys, Span
from llama_jax.kernels.blockwise import over_spans as attention
from llama_jax.ops import rope
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


@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(512, 640), (520, 640), (24, 16)], ids=str)
def test_linear_is_the_product_in_whatever_form_the_platform_takes(rows, dtype, shape):
    """One row of a large weight, of one whose rows make no whole pieces, and of a small one."""
    x, w = normal(0, rows, 1, shape[0]).astype(dtype), normal(1, *shape).astype(dtype)
    expected = np.float64(x) @ np.float64(w)
    out = jax.jit(linear)(x, w)
    assert out.dtype == x.dtype
    precision = 1e-5 if dtype == "float32" else 1e-2
    np.testing.assert_allclose(np.float64(out), expected, rtol=precision, atol=20 * precision)
    transposed = jax.jit(linear_transposed)(x, w.T)
    assert transposed.dtype == x.dtype
    np.testing.assert_allclose(
        np.float64(transposed), expected, rtol=precision, atol=20 * precision
    )


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("product", [linear, linear_transposed])
def test_linear_has_the_gradient_of_a_product_in_whatever_form(product, dtype, rows):
    x, w = normal(0, rows, 512).astype(dtype), normal(1, 640, 512).astype(dtype)
    w = w if product is linear_transposed else w.T
    plain = (lambda x, w: x @ w.T) if product is linear_transposed else (lambda x, w: x @ w)

    def gradient(f):
        def loss(x, w):
            return jnp.sum(jnp.square(f(x, w).astype(jnp.float32)))

        return jax.jit(jax.grad(loss, argnums=(0, 1)))(x, w)

    precision = 1e-5 if dtype == "float32" else 2e-2
    for ours, expected in zip(gradient(product), gradient(plain), strict=True):
        assert np.any(np.float32(ours) != 0)
        scale = np.abs(np.float32(expected)).max()
        np.testing.assert_allclose(
            np.float32(ours), np.float32(expected), rtol=precision, atol=precision * scale
        )


def test_linear_lets_a_weight_multiply_itself():
    @jax.tree_util.register_dataclass
    @dataclasses.dataclass
    class Doubled:
        w: jax.Array

        def matmul(self, x):
            return 2 * (x @ self.w)

        def parts(self):
            return {"w": self.w}

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


def seen(span, time):
    """Which query sees which key of a span, as [batch, time, span]."""
    batch, last = len(span.k), jnp.broadcast_to(span.last, (len(span.k), time))
    return np.asarray(span.positions[:, None] <= last[:, :, None]) & np.ones((batch, 1, 1), bool)


def causal(k, v):
    positions = jnp.broadcast_to(jnp.arange(k.shape[2]), (len(k), k.shape[2]))
    return Span(k, v, positions, positions)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_attention_is_its_formula_whatever_the_groups(kv_heads):
    q, k, v = normal(0, 2, 5, 4, 8), normal(1, 2, kv_heads, 5, 8), normal(2, 2, kv_heads, 5, 8)
    span = causal(k, v)
    expected = attention_in_numpy(q, k, v, seen(span, 5))
    np.testing.assert_allclose(attention(q, [span]), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("time", [1, 5, 150, 300])
def test_queries_see_their_own_keys_up_to_themselves(time):
    """However many take their keys at once."""
    q, k, v = normal(0, 1, time, 4, 8), normal(1, 1, 2, time, 8), normal(2, 1, 2, time, 8)
    expected = attention_in_numpy(q, k, v, seen(causal(k, v), time))
    np.testing.assert_allclose(attention(q, [OwnKeys(k, v)]), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("time", [1, 3])
def test_attention_over_two_spans_is_attention_over_their_union(time):
    q, k, v = normal(0, 2, time, 4, 8), normal(1, 2, 2, 9, 8), normal(2, 2, 2, 9, 8)
    places = jax.random.permutation(jax.random.key(3), jnp.tile(jnp.arange(9), (2, 1)), axis=1)
    last = jnp.arange(2 * time).reshape(2, time) + 1
    whole = Span(k, v, places, last)
    cut = [Span(k[:, :, s], v[:, :, s], places[:, s], last) for s in (slice(0, 4), slice(4, 9))]
    expected = attention_in_numpy(q, k, v, seen(whole, time))
    np.testing.assert_allclose(attention(q, [whole]), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(attention(q, cut), expected, rtol=1e-5, atol=1e-6)


def test_attention_ignores_a_span_of_which_nothing_is_visible():
    q, k, v = normal(0, 1, 2, 2, 8), normal(1, 1, 2, 4, 8), normal(2, 1, 2, 4, 8)
    slots, before, all_of_them = jnp.arange(4)[None], jnp.array([[-1]]), jnp.array([[3]])
    hidden = Span(jnp.full_like(k, 1e30), jnp.full_like(v, 1e30), slots, before)
    shown = Span(k, v, slots, all_of_them)
    alone = attention(q, [shown])
    np.testing.assert_array_equal(attention(q, [hidden, shown]), alone)
    np.testing.assert_array_equal(attention(q, [shown, hidden]), alone)


@pytest.mark.parametrize("used", [pytest.param(0, marks=pytest.mark.slow), 5, 24])
def test_attention_in_blocks_is_attention_at_once(monkeypatch, used):
    """Blocks that divide neither the queries nor the keys, over a past used in part."""
    q, k, v = normal(0, 2, 21, 4, 8), normal(1, 2, 2, 21, 8), normal(2, 2, 2, 21, 8)
    positions = used + jnp.tile(jnp.arange(21), (2, 1))
    past_k, past_v = normal(3, 2, 2, 27, 8), normal(4, 2, 2, 27, 8)
    past = Span(past_k, past_v, jnp.arange(27)[None], positions[:, :1] - 1)
    spans = [past, OwnKeys(k, v)]

    def loss(q, spans):
        return jnp.sum(jnp.sin(attention(q, spans)))

    at_once, gradient_at_once = jax.value_and_grad(loss)(q, spans[1:]) if used == 0 else (0, 0)
    whole = attention(q, spans)
    monkeypatch.setattr("llama_jax.kernels.blockwise.QUERY_BLOCK", 4)
    monkeypatch.setattr("llama_jax.kernels.blockwise.KEY_BLOCK", 8)
    jax.clear_caches()
    try:
        np.testing.assert_allclose(attention(q, spans), whole, rtol=1e-5, atol=1e-6)
        if used == 0:
            value, gradient = jax.value_and_grad(loss)(q, spans[1:])
            np.testing.assert_allclose(value, at_once, rtol=1e-5)
            np.testing.assert_allclose(gradient, gradient_at_once, rtol=1e-4, atol=1e-5)
    finally:
        jax.clear_caches()


def test_softmax_is_float32_for_bfloat16_heads():
    # 400 equal scores: bfloat16 would lose most of a sum of 400 weights.
    q, k = jnp.zeros((1, 1, 1, 8), jnp.bfloat16), jnp.zeros((1, 1, 400, 8), jnp.bfloat16)
    v = jnp.ones((1, 1, 400, 8), jnp.bfloat16)
    out = attention(q, [Span(k, v, jnp.arange(400)[None], jnp.array([[399]]))])
    np.testing.assert_allclose(np.float32(out), 1, rtol=0.01)
