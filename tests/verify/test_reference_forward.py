"""The float64 NumPy forward: Meta's own logits, and our model's under every kind of RoPE."""

import ast
import inspect

import jax
import numpy as np
import pytest
from helpers import GOLDEN_META

import llama_jax
from llama_jax.checkpoint.names import names_table
from llama_jax.checkpoint.reading import open_checkpoint
from llama_jax.config import (
    Config,
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    YarnScaling,
)
from llama_jax.verify import reference
from llama_jax.verify.compare import probes
from llama_jax.weights.params import Params, nested

YARN = {
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "attention_factor": 1.2,
    "original_max_seq_len": 4096,
}
SCALINGS = {
    "none": None,
    "linear": LinearScaling(4.0),
    "llama3": Llama3Scaling(8.0, 1.0, 4.0, 8192),
    "yarn": YarnScaling(factor=8.0, truncate=True, **YARN),
    "yarn untruncated": YarnScaling(factor=8.0, truncate=False, **YARN),
    "dynamic": DynamicScaling(2.0, 131072),
}


def weights_of(config, deviation=0.3):
    rng = np.random.default_rng(0)
    return {
        row.path: (rng.normal(size=row.shape) * deviation).astype(np.float32)
        for row in names_table(config)
    }


@pytest.mark.parametrize("name", ["llama1", "llama2-gqa", "llama3", "llama3.1"])
def test_logits_are_metas(name):
    with np.load(GOLDEN_META / name / "reference.npz") as file:
        golden = dict(file)
    source = open_checkpoint(GOLDEN_META / name)
    positions = np.broadcast_to(np.arange(golden["tokens"].shape[1]), golden["tokens"].shape)
    logits = reference.reference_logits(source.config, source.tensors, golden["tokens"], positions)
    assert logits.dtype == np.float64
    strided = logits[:, :: int(golden["logits_stride"])]
    np.testing.assert_allclose(strided, golden["logits"], atol=2e-4, rtol=0)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("biases", [False, True], ids=["plain", "biases"])
@pytest.mark.parametrize("scaling", SCALINGS)
def test_the_model_computes_the_same_near_and_far(scaling, biases, tied):
    config = Config.named("tiny").replace(
        rope_scaling=SCALINGS[scaling],
        rope_theta=500000.0,
        max_seq_len=131072,
        attention_bias=biases,
        mlp_bias=biases,
        tie_embeddings=tied,
    )
    weights = weights_of(config)
    tokens, positions = probes(config)
    expected = reference.reference_logits(config, weights, tokens, positions)
    params = Params(nested(weights), config)
    ours, _ = jax.jit(llama_jax.forward)(params, tokens, positions)
    np.testing.assert_allclose(ours, expected, atol=2e-5 * np.abs(expected).max(), rtol=0)


def test_weights_are_read_in_bands(monkeypatch):
    config = Config.named("tiny").replace(vocab_size=1500, hidden_dim=1100)
    weights = weights_of(config)
    tokens, positions = probes(config)
    whole = reference.reference_logits(config, weights, tokens, positions)
    monkeypatch.setattr(reference, "BAND", 1)

    class Watched:
        def __init__(self, array):
            self.array, self.shape = array, array.shape

        def __getitem__(self, index):
            part = self.array[index]
            assert part.size <= 512 * config.hidden_dim
            return part

    watched = {path: Watched(array) for path, array in weights.items()}
    banded = reference.reference_logits(config, watched, tokens, positions)
    np.testing.assert_allclose(banded, whole, rtol=1e-12, atol=1e-12)


def test_it_shares_nothing_with_the_model():
    tree = ast.parse(inspect.getsource(reference))
    modules = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert {module for module in modules if module.startswith("llama_jax")} == {"llama_jax.config"}
