"""The step: accumulation, packing, remat and meshes change nothing; a bad step changes nothing."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from single_steps import ROWS, TIME, batch_of, close, recipe_of, trained

from llama_jax.model.transformer import forward, init_params
from llama_jax.sharding.mesh import make_mesh
from llama_jax.train.rows import Batch
from llama_jax.train.state import new_state
from llama_jax.train.step import jitted_step, loss_and_gradients, loss_sum
from llama_jax.verify.reference import reference_logits
from llama_jax.weights.params import weight_at
from llama_jax.weights.table import weight_table


def gradients_of(config, params, **step):
    recipe = recipe_of(**step)
    return jax.jit(loss_and_gradients, static_argnums=0)(recipe.step, params, batch_of(config))


@pytest.fixture(scope="module")
def gradients(config, params):
    return gradients_of(config, params)


def test_gradients_are_the_differences_of_the_loss_in_float64(config, params, gradients):
    """Of each weight along a random direction, by the NumPy model of each document alone."""
    weights = {path: np.asarray(weight_at(params.weights, path)) for path in weight_table(config)}
    batch = jax.tree.map(np.asarray, batch_of(config))
    starts = [*np.flatnonzero(batch.positions[0] == 0), TIME]
    documents = [np.s_[:, a:b] for a, b in itertools.pairwise(starts)]
    draw = np.random.default_rng(9)

    def loss(weights):
        total = 0.0
        for cut in documents:
            logits = reference_logits(config, weights, batch.tokens[cut], batch.positions[cut])
            top = logits.max(-1)
            norms = np.log(np.exp(logits - top[..., None]).sum(-1)) + top
            targets = np.take_along_axis(logits, batch.targets[cut][..., None], -1)[..., 0]
            total += ((norms - targets) * batch.weights[cut]).sum()
        return total / batch.weights.sum()

    assert float(gradients[0]) == pytest.approx(loss(weights), abs=1e-5)
    for path, weight in weights.items():
        along = draw.standard_normal(weight.shape)
        one, other = (
            loss(weights | {path: weight.astype(np.float64) + distance * along})
            for distance in (1e-6, -1e-6)
        )
        slope = (np.asarray(weight_at(gradients[1].weights, path)) * along).sum()
        assert slope == pytest.approx((one - other) / 2e-6, rel=1e-4, abs=1e-5), path


def test_the_loss_is_forwards_of_each_document_alone(config, params):
    batch = batch_of(config, document=8)
    total = 0.0
    for start in range(0, TIME, 8):
        cut = np.s_[:, start : start + 8]
        logits, _ = forward(params, batch.tokens[cut], batch.positions[cut])
        log_probs = jax.nn.log_softmax(logits)
        losses = -np.take_along_axis(log_probs, batch.targets[cut][..., None], axis=-1)[..., 0]
        total += float((losses * batch.weights[cut]).sum())
    found = loss_sum(recipe_of().step, params, batch)
    assert float(found) == pytest.approx(total, rel=1e-5)


def test_packed_rows_give_the_gradients_of_separate_documents(config, params):
    packed = batch_of(config, document=8)
    cut = lambda x: x.reshape(ROWS * TIME // 8, 8)  # noqa: E731
    apart = jax.tree.map(cut, packed)
    step = recipe_of().step
    one, other = (
        jax.jit(loss_and_gradients, static_argnums=0)(step, params, batch)
        for batch in (packed, apart)
    )
    close(one, other, 1e-5)


def test_copies_of_one_document_are_no_help_to_one_another():
    """A random document three times in a row: what the first two are does not change the third's
    loss by a bit, and where rows are joined it does.
    """
    from llama_jax.config import Config

    config = Config.named("tiny")
    params = init_params(jax.random.key(0), config)
    ids = np.tile(np.random.default_rng(0).integers(0, config.vocab_size, 8), 3)[None]
    positions = np.tile(np.arange(8), 3)[None]
    targets = np.roll(ids, -1)
    step = recipe_of().step

    def last_third(tokens):
        weights = np.zeros(ids.shape, np.float32)
        weights[:, 16:] = 1
        batch = jax.tree.map(jnp.asarray, Batch(tokens, targets, positions, weights))
        return float(loss_sum(step, params, batch))

    other = ids.copy()
    other[:, :16] = (ids[:, :16] + 1) % config.vocab_size
    assert last_third(ids) == last_third(other)
    joined = dataclasses.replace(step, documents="joined")
    step = joined
    assert last_third(ids) != last_third(other), "joined rows do see one another"


def test_micro_batches_of_unequal_counts_are_one_batch(config, params, gradients):
    close(gradients_of(config, params, micro_batches=4), gradients, 1e-6)


@pytest.mark.parametrize("remat", ["layer", "dots"])
def test_what_is_computed_again_is_the_same(remat, config, params, gradients):
    close(gradients_of(config, params, remat=remat), gradients, 1e-6)


def test_z_loss_adds_the_squared_logsumexp(config, params):
    plain, _ = gradients_of(config, params)
    more, _ = gradients_of(config, params, z_loss=1e-2)
    batch = batch_of(config, document=TIME)
    assert float(more) - float(plain) == pytest.approx(
        1e-2 * np.log(config.vocab_size) ** 2, rel=0.05
    )
    assert batch.weights.sum() > 0


MESHES = [
    {"data": 8},
    {"fsdp": 8},
    {"tensor": 8},
    {"data": 2, "fsdp": 2, "tensor": 2},
    {"data": 4, "tensor": 2},
    {"fsdp": 2, "tensor": 4},
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("axes", "kind"), [*((axes, "adamw") for axes in MESHES), (MESHES[3], "muon")], ids=str
)
def test_every_mesh_has_one_devices_losses(axes, kind, config):
    recipe = recipe_of({"kind": kind}, micro_batches=1)
    _, alone = trained(config, recipe, steps=20)
    state, losses = trained(config, recipe, steps=20, mesh=make_mesh(**axes))
    np.testing.assert_allclose(losses, alone, rtol=1e-5, atol=1e-5)
    assert int(state.step) == 20


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_meshs_padding_stays_zero(kind, config):
    uneven = config.replace(vocab_size=251, hidden_dim=190)
    state, losses = trained(uneven, recipe_of({"kind": kind}), mesh=make_mesh(tensor=4, fsdp=2))
    _, alone = trained(uneven, recipe_of({"kind": kind}))
    np.testing.assert_allclose(losses, alone, rtol=1e-5)
    w = state.params.weights
    assert w["tok_embeddings"]["weight"].shape[0] > 251, "this mesh pads"
    for padding in (
        w["tok_embeddings"]["weight"][251:],
        w["output"]["weight"][:, 251:],
        w["layers_0"]["feed_forward"]["w1"][:, 190:],
        w["layers_0"]["feed_forward"]["w2"][190:],
    ):
        assert padding.size
        assert not np.any(padding)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_tied_output_is_trained_once(kind, config):
    tied = config.replace(tie_embeddings=True)
    state = new_state(recipe_of({"kind": kind}), init_params(jax.random.key(0), tied))
    step, batch, losses = jitted_step(recipe_of({"kind": kind})), batch_of(tied), []
    for _ in range(8):
        state, metrics = step(state, batch)
        losses.append(float(metrics.loss))
    assert "output" not in state.params.weights
    assert losses[-1] < losses[0]


def test_a_bad_step_changes_nothing_but_the_counts(config):
    recipe = recipe_of(average=0.9)
    state, _ = trained(config, recipe)
    before = jax.tree.map(np.asarray, state)
    step = jitted_step(recipe)
    bad = batch_of(config, 3)
    bad = dataclasses.replace(bad, weights=jnp.where(bad.weights, jnp.float32("nan"), 0))
    state, metrics = step(state, bad)
    state, metrics = step(state, dataclasses.replace(bad, weights=jnp.zeros_like(bad.weights)))
    assert not metrics.good
    for name in ("params", "moments", "average", "norm"):
        jax.tree.map(np.testing.assert_array_equal, getattr(state, name), getattr(before, name))
    assert int(state.step) == int(before.step) + 2
    assert int(state.left_out) == int(state.left_out_in_a_row) == 2
    state, metrics = step(state, batch_of(config, 4))
    assert metrics.good
    assert (int(state.left_out), int(state.left_out_in_a_row)) == (2, 0)


def test_a_spike_is_left_out_by_the_recipes_rule(config):
    recipe = recipe_of(spike=3.0)
    state, _ = trained(config, recipe)
    step = jitted_step(recipe)
    state = dataclasses.replace(state, norm=state.norm / 100)
    before = jax.tree.map(np.asarray, state.params)
    state, metrics = step(state, batch_of(config, 3))
    assert not metrics.good
    jax.tree.map(np.testing.assert_array_equal, state.params, before)


def test_clipping_keeps_the_direction(config):
    _, free = trained(config, recipe_of({"clip": 0.0}), steps=2)
    _, loose = trained(config, recipe_of({"clip": 1e6}), steps=2)
    assert free == loose


def test_bfloat16_keeps_float32_weights_and_moments(config):
    state, losses = trained(config, recipe_of(dtype="bfloat16"), steps=8)
    kept = jax.tree.leaves((state.params, state.moments))
    assert {x.dtype for x in kept} == {jnp.dtype("float32"), jnp.dtype("int32")}
    _, exact = trained(config, recipe_of(), steps=8)
    np.testing.assert_allclose(losses, exact, atol=0.02)


def test_every_buffer_of_the_state_is_donated(config):
    recipe = recipe_of(average=0.9)
    params = init_params(jax.random.key(0), config)
    state = new_state(recipe, params)
    compiled = jitted_step(recipe).lower(state, batch_of(config)).compile()
    given = sum(x.nbytes for x in jax.tree.leaves(state))
    assert compiled.memory_analysis().alias_size_in_bytes >= given


def test_the_average_follows_the_weights(config):
    state, _ = trained(config, recipe_of(average=0.5), steps=1)
    start = init_params(jax.random.key(0), config)
    wanted = jax.tree.map(lambda a, b: 0.5 * a + 0.5 * b, start, state.params)
    close(state.average, wanted, 1e-7)
