"""Params as a pytree."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from llama_jax.weights.params import Params


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
