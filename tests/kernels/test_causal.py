"""Causal attention without a past: equal to the plain formula, gradients too, documents apart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax.kernels import causal
from llama_jax.kernels.causal import causal_attention

pytestmark = pytest.mark.bits

HEADS, KV_HEADS, HEAD_DIM = 4, 2, 8


def plain(q, k, v, first=None):
    """Softmax over all visible keys at once."""
    time = q.shape[1]
    grouped = q.reshape(*q.shape[:2], k.shape[2], -1, q.shape[3])
    scores = jnp.einsum("btkgd,bskd->bkgts", grouped, k) * q.shape[3] ** -0.5
    t, s = jnp.arange(time)[:, None], jnp.arange(time)
    seen = (s <= t)[None] if first is None else (s <= t)[None] & (s >= first[:, :, None])
    weights = jax.nn.softmax(jnp.where(seen[:, None, None], scores, -jnp.inf), axis=-1)
    return jnp.einsum("bkgts,bskd->btkgd", weights, v).reshape(q.shape)


def drawn(time, batch=2, seed=0, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(seed), 4)
    heads = (HEADS, KV_HEADS, KV_HEADS, HEADS)
    return [
        jax.random.normal(key, (batch, time, n, HEAD_DIM), dtype)
        for key, n in zip(keys, heads, strict=True)
    ]


def first_of(time, lengths):
    """For documents of these lengths, again and again: the index at which each token's begins."""
    starts = np.cumsum([0, *lengths * time])
    index = np.arange(time)
    first = starts[np.searchsorted(starts, index, side="right") - 1]
    return jnp.asarray(np.broadcast_to(first, (2, time)))


def both(f, q, k, v, first, d_out):
    def total(q, k, v):
        return jnp.sum(f(q, k, v, first) * d_out)

    return jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2)))(q, k, v)


@pytest.mark.parametrize("time", [1, 7, 64, 130, 300])
@pytest.mark.parametrize("lengths", [None, [5, 1, 11], [400]], ids=str)
def test_output_and_gradients_are_the_plain_formulas(time, lengths, monkeypatch):
    monkeypatch.setattr(causal, "SMALL_BLOCK", 64)
    q, k, v, d_out = drawn(time)
    first = None if lengths is None else first_of(time, lengths)
    np.testing.assert_allclose(
        causal_attention(q, k, v, first), plain(q, k, v, first), rtol=1e-5, atol=1e-5
    )
    ours, theirs = (both(f, q, k, v, first, d_out) for f in (causal_attention, plain))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), ours, theirs)


def test_many_pairs_become_a_loop_and_give_the_same_gradients(monkeypatch):
    q, k, v, d_out = drawn(96)
    first = first_of(96, [40, 3])
    monkeypatch.setattr(causal, "SMALL_BLOCK", 16)
    written_out = 6 * 7 // 2
    monkeypatch.setattr(causal, "UNROLLED", written_out)
    jax.clear_caches()
    one = both(causal_attention, q, k, v, first, d_out)
    monkeypatch.setattr(causal, "UNROLLED", written_out - 1)
    jax.clear_caches()
    other = both(causal_attention, q, k, v, first, d_out)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), one, other)


def test_a_document_is_as_it_would_be_alone():
    q, k, v, _ = drawn(50)
    whole = causal_attention(q, k, v, first_of(50, [20, 30]))
    for cut in (slice(0, 20), slice(20, 50)):
        alone = causal_attention(q[:, cut], k[:, cut], v[:, cut])
        np.testing.assert_allclose(whole[:, cut], alone, rtol=1e-5, atol=1e-6)


def test_scores_are_summed_in_float32_beside_16_bit_inputs():
    q, k, v, d_out = drawn(200, dtype=jnp.bfloat16)
    ours = both(causal_attention, q, k, v, None, d_out)
    wide = [x.astype(jnp.float32) for x in (q, k, v)]
    theirs = both(plain, *wide, None, d_out.astype(jnp.float32))
    for a, b in zip(ours[1], theirs[1], strict=True):
        assert a.dtype == jnp.bfloat16
        gap = np.abs(np.asarray(a, np.float32) - np.asarray(b)).max()
        assert gap < 0.02 * np.abs(b).max()


@pytest.mark.parametrize("lengths", [None, [100, 33]], ids=str)
def test_no_array_of_time_by_time_exists_in_the_gradients_program(lengths):
    time = 2048
    q, k, v, d_out = (jax.ShapeDtypeStruct(x.shape, x.dtype) for x in drawn(time, batch=1))
    first = None if lengths is None else jax.ShapeDtypeStruct((1, time), jnp.int32)

    def total(q, k, v, first, d_out):
        return jnp.sum(causal_attention(q, k, v, first) * d_out)

    given = (q, k, v, first, d_out)
    jaxpr = str(jax.make_jaxpr(jax.grad(total, argnums=(0, 1, 2)))(*given))
    assert f"{time},{time}" not in jaxpr
    assert f",{causal.BLOCK},{HEADS // KV_HEADS},{causal.BLOCK}]" in jaxpr, "a block's scores do"
