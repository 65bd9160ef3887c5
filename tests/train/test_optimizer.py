"""The schedule at its corners; AdamW equals a NumPy statement; Muon takes matrices only."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax.model.transformer import init_params
from llama_jax.train.optimizer import direction, learning_rate
from llama_jax.train.recipe import Optimizer, Recipe, Step


def rate(step, steps=10_000, **changes):
    recipe = Recipe(steps=steps, optimizer=Optimizer(**changes))
    return float(learning_rate(recipe, jnp.int32(step)))


def test_llamas_schedule_at_its_corners():
    largest = 3e-4
    assert rate(0) == pytest.approx(largest / 2000, rel=1e-6)
    assert rate(1) == pytest.approx(2 * largest / 2000, rel=1e-6)
    assert rate(1999) == pytest.approx(largest, rel=1e-6)
    assert rate(2000) == pytest.approx(largest, rel=1e-6)
    assert rate(5999) == pytest.approx(0.55 * largest, rel=1e-6), "halfway down"
    assert rate(9999) == pytest.approx(0.1 * largest, rel=1e-6), "the last step"


def test_wsd_stays_and_then_comes_down_in_a_straight_line():
    wsd = {"schedule": "wsd", "decay": 0.2, "floor": 0.0, "warmup": 10, "steps": 1000}
    assert rate(9, **wsd) == rate(799, **wsd) == pytest.approx(3e-4, rel=1e-6)
    assert rate(899, **wsd) == pytest.approx(1.5e-4, rel=1e-5)
    assert rate(999, **wsd) == 0


def test_constant_stays():
    constant = {"schedule": "constant", "warmup": 0}
    assert rate(0, **constant) == rate(9999, **constant) == pytest.approx(3e-4, rel=1e-6)


def test_two_steps_of_adamw_are_what_the_paper_says(params):
    """arXiv:1711.05101, algorithm 2, in NumPy."""
    o = Optimizer(weight_decay=0.1)
    draw = np.random.default_rng(0)
    gradients = [jax.tree.map(lambda w: draw.normal(size=w.shape), params) for _ in range(2)]
    optimizer = direction(o, params)
    moments, ours = optimizer.init(params), params
    for gradient in gradients:
        gradient = jax.tree.map(jnp.float32, gradient)
        updates, moments = optimizer.update(gradient, moments, ours)
        ours = jax.tree.map(lambda w, u: w + 0.01 * u, ours, updates)

    def stated(w, *gradients):
        w, m, v = np.asarray(w, np.float64), 0.0, 0.0
        decay = o.weight_decay if w.ndim > 1 else 0.0
        for t, g in enumerate(gradients, start=1):
            m = o.beta1 * m + (1 - o.beta1) * g
            v = o.beta2 * v + (1 - o.beta2) * g**2
            mean, square = m / (1 - o.beta1**t), v / (1 - o.beta2**t)
            w = w - 0.01 * (mean / (np.sqrt(square) + o.epsilon) + decay * w)
        return w

    theirs = jax.tree.map(stated, params, *gradients)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), ours, theirs)


def test_muon_orthogonalises_the_layers_matrices_and_leaves_the_rest_to_adamw(params):
    draw = np.random.default_rng(1)
    gradient = jax.tree.map(lambda w: jnp.float32(draw.normal(size=w.shape)), params)
    found = {}
    for kind in ("adamw", "muon"):
        optimizer = direction(Optimizer(kind=kind, weight_decay=0.0), params)
        found[kind], _ = optimizer.update(gradient, optimizer.init(params), params)
    adamw, muon = (found[kind].weights for kind in ("adamw", "muon"))
    for group in ("tok_embeddings", "norm", "output"):
        jax.tree.map(np.testing.assert_array_equal, adamw[group], muon[group])
    np.testing.assert_array_equal(
        adamw["layers_0"]["ffn_norm"]["scale"], muon["layers_0"]["ffn_norm"]["scale"]
    )
    for name in ("w1", "w2"):
        update = np.asarray(muon["layers_0"]["feed_forward"][name])
        values = np.linalg.svd(update, compute_uv=False)
        assert values.max() < 2.0 * values.min(), "nearly orthogonal"
        assert np.sqrt(np.mean(update**2)) == pytest.approx(0.2, rel=0.2), "as large as AdamW's"


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_norms_and_biases_do_not_decay(kind, config):
    params = init_params(jax.random.key(0), config.replace(attention_bias=True))
    params = jax.tree.map(jnp.ones_like, params)
    optimizer = direction(Optimizer(kind=kind), params)
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zero, optimizer.init(params), params)
    for weight in jax.tree.leaves(updates):
        np.testing.assert_allclose(weight, -0.1 if weight.ndim > 1 else 0.0, rtol=1e-6)


@pytest.mark.parametrize(
    ("section", "changes", "words"),
    [
        (Optimizer, {"learning_rate": -1.0}, "learning_rate=-1.0 must be a finite number"),
        (Optimizer, {"kind": "sgd"}, "kind='sgd' is unknown; it is one of 'adamw', 'muon'"),
        (Optimizer, {"beta2": 1.5}, "beta2=1.5 must be at most 1"),
        (Optimizer, {"warmup": -1}, "warmup=-1 must be an integer from 0"),
        (Step, {"batch": 6, "micro_batches": 4}, "micro_batches=4 does not divide batch=6"),
        (Step, {"remat": "all"}, "remat='all' is unknown"),
        (Step, {"context": 0}, "context=0 must be a positive integer"),
        (Step, {"average": 1.0}, "average=1.0 must be below 1"),
        (Recipe, {"steps": 2000}, "warmup=2000 must be below steps=2000"),
    ],
)
def test_a_wrong_setting_names_its_rule(section, changes, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        section(**changes)
