"""Params as a pytree."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from llama_jax.weights.params import Params, weight_at


def test_params_survive_flattening(params):
    leaves, structure = jax.tree.flatten(params.replace(tokenizer=Path("here")))
    rebuilt = jax.tree.unflatten(structure, leaves)
    assert rebuilt.config == params.config
    assert rebuilt.tokenizer == Path("here")


def test_where_the_tokenizer_lies_recompiles_nothing_and_another_config_does(params):
    traces = []

    @jax.jit
    def traced(p):
        traces.append(p.config)
        return p.weights["norm"]["scale"].sum()

    traced(params)
    traced(params.replace(tokenizer=Path("elsewhere")))
    assert len(traces) == 1
    traced(params.replace(config=params.config.replace(norm_eps=1e-6)))
    assert len(traces) == 2


def test_params_count_their_numbers_and_bytes(params):
    half = jax.tree.map(lambda w: w.astype(jnp.bfloat16), params)
    assert params.nbytes == 4 * params.size
    assert half.nbytes == 2 * params.size
    assert half.dtype == jnp.bfloat16
    assert repr(params).startswith(f"Params({params.size:,} parameters, float32")


def test_params_are_frozen(params):
    with pytest.raises(AttributeError):
        params.config = None
    assert isinstance(params, Params)


@pytest.mark.parametrize("path", [("layers_1", "attention", "wq"), ("norm", "scale")])
def test_a_weight_is_changed_in_one_place_of_a_new_value(params, path):
    before = weight_at(params.weights, path)
    changed = params.with_weight(path, before + 1)
    assert jnp.array_equal(weight_at(changed.weights, path), before + 1)
    assert weight_at(params.weights, path) is before
    assert (changed.config, jax.tree.structure(changed)) == (
        params.config,
        jax.tree.structure(params),
    )
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(changed), strict=True)
    assert sum(old is not new for old, new in pairs) == 1


def test_a_weight_of_another_place_or_shape_is_refused(params):
    with pytest.raises(ValueError, match=r"path=\('layers_0', 'wq'\) is not the path of a weight"):
        params.with_weight(("layers_0", "wq"), jnp.zeros(3))
    scale = params.weights["norm"]["scale"]
    for wrong in (scale[:-1], scale[None], 1.0, scale.tolist()):
        with pytest.raises(ValueError, match="give an array of the same shape"):
            params.with_weight(("norm", "scale"), wrong)
