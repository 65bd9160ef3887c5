"""The chunked cross-entropy equals the plain one, and so do its gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from llama_jax.sharding.mesh import make_mesh
from llama_jax.train import loss
from llama_jax.train.loss import cross_entropy

BATCH, TIME, DIM, VOCAB = 4, 11, 8, 24


def drawn(over, padding=0, dtype=jnp.float32, batch=BATCH):
    keys = jax.random.split(jax.random.key(3), 4)
    w = jnp.pad(jax.random.normal(keys[1], (DIM, VOCAB)), ((0, 0), (0, padding)))
    return (
        jax.random.normal(keys[0], (batch, TIME, DIM), dtype),
        w if over == 0 else w.T,
        jax.random.randint(keys[2], (batch, TIME), 0, VOCAB),
        jnp.round(2 * jax.random.uniform(keys[3], (batch, TIME))) / 2,
    )


def plain(over, z_loss, x, w, targets, weights):
    logits = (x @ w if over == 0 else x @ w.T).astype(jnp.float32)[..., :VOCAB]
    log_z = jax.nn.logsumexp(logits, axis=-1)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return jnp.sum(weights * (losses + z_loss * log_z**2))


@pytest.fixture(params=[VOCAB * 8, VOCAB * 1000], ids=["chunks", "whole"])
def chunk(request, monkeypatch):
    monkeypatch.setattr(loss, "CHUNK_LOGITS", request.param)


@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize("over", [0, 1], ids=["untied", "tied"])
def test_loss_and_gradients_are_the_plain_ones(over, padding, z_loss, chunk):
    x, w, targets, weights = drawn(over, padding)
    ours = jax.value_and_grad(
        lambda x, w: 3 * cross_entropy(VOCAB, over, z_loss, x, w, targets, weights), (0, 1)
    )(x, w)
    theirs = jax.value_and_grad(
        lambda x, w: 3 * plain(over, z_loss, x, w, targets, weights), (0, 1)
    )(x, w)
    alone = cross_entropy(VOCAB, over, z_loss, x, w, targets, weights)
    np.testing.assert_allclose(alone, ours[0] / 3, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), ours, theirs)


def test_a_token_of_weight_zero_gives_nothing(chunk):
    x, w, targets, weights = drawn(0)
    weights = weights.at[1].set(0)
    given = lambda targets: jax.value_and_grad(  # noqa: E731
        lambda x, w: cross_entropy(VOCAB, 0, 0.0, x, w, targets, weights), (0, 1)
    )(x, w)
    one, other = given(targets), given(targets.at[1].set(0))
    jax.tree.map(np.testing.assert_array_equal, one, other)
    assert not np.any(one[1][0][1])


def test_beside_bfloat16_activations_the_outputs_gradient_is_summed_in_float32(chunk):
    x, w, targets, weights = drawn(0, dtype=jnp.bfloat16)
    found = jax.grad(lambda w: cross_entropy(VOCAB, 0, 0.0, x, w, targets, weights))(w)
    assert found.dtype == jnp.float32
    narrow = w.astype(jnp.bfloat16).astype(jnp.float32)
    wanted = jax.grad(lambda w: plain(0, 0.0, x.astype(jnp.float32), w, targets, weights))(narrow)
    np.testing.assert_allclose(found, wanted, atol=0.01 * np.abs(wanted).max())


@pytest.mark.parametrize("over", [0, 1], ids=["untied", "tied"])
@pytest.mark.parametrize("axes", [{"data": 8}, {"fsdp": 2, "tensor": 4}, {"data": 2, "tensor": 2}])
def test_a_mesh_gives_one_devices_loss(axes, over, chunk):
    x, w, targets, weights = drawn(over, batch=8)

    def both(x, w):
        return jax.value_and_grad(
            lambda x, w: cross_entropy(VOCAB, over, 1e-3, x, w, targets, weights), (0, 1)
        )(x, w)

    one = both(x, w)
    with jax.set_mesh(make_mesh(**axes)):
        many = jax.jit(both)(x, w)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), one, many)


def test_no_array_of_batch_by_time_by_vocabulary_exists(monkeypatch):
    monkeypatch.setattr(loss, "CHUNK_LOGITS", 2**20)
    batch, time, dim, vocab = 4, 4096, 64, 32000
    x = jax.ShapeDtypeStruct((batch, time, dim), jnp.float32)
    w = jax.ShapeDtypeStruct((dim, vocab), jnp.float32)
    targets = jax.ShapeDtypeStruct((batch, time), jnp.int32)
    weights = jax.ShapeDtypeStruct((batch, time), jnp.float32)
    gradient = jax.grad(lambda x, w, *rest: cross_entropy(vocab, 0, 0.0, x, w, *rest), (0, 1))
    jaxpr = str(jax.make_jaxpr(gradient)(x, w, targets, weights))
    assert f"{time},{vocab}" not in jaxpr
    assert f"1,{batch},8,{vocab}]" in jaxpr, "a chunk's logits do: 8 tokens of each row"
