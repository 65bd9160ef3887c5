"""The types that `bench.quality` gives matrices, how it scores a text, and orders of a model."""

import argparse
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import config_of

import llama_jax
from bench import quality
from bench.ggml import type_of
from bench.orders import reordered
from llama_jax.checkpoint import load
from llama_jax.weights.params import weight_at
from llama_jax.weights.table import weight_table

SEVEN_B = llama_jax.Config.named("llama-2-7b")


@pytest.mark.parametrize(
    ("path", "columns", "file", "kind"),
    [
        (("layers_0", "attention", "wq"), 4096, "Q4_K_M", "Q4_K"),
        (("layers_3", "attention", "wv"), 4096, "Q4_K_M", "Q6_K"),  # of the first eighth
        (("layers_4", "attention", "wv"), 4096, "Q4_K_M", "Q4_K"),
        (("layers_6", "feed_forward", "w2"), 11008, "Q4_K_M", "Q6_K"),  # every third
        (("layers_28", "feed_forward", "w2"), 11008, "Q4_K_M", "Q6_K"),
        (("output", "weight"), 4096, "Q4_K_M", "Q6_K"),
        (("tok_embeddings", "weight"), 4096, "Q4_K_M", "Q4_K"),
        (("layers_0", "attention", "wq"), 576, "Q4_K_M", "Q5_0"),
        (("output", "weight"), 576, "Q4_0", "Q8_0"),
        (("layers_0", "attention", "wq"), 576, "Q4_0", "Q4_0"),
        (("output", "weight"), 4096, "Q8_0", "Q8_0"),
        (("layers_0", "feed_forward", "w2"), 172, "Q4_0", "F16"),
    ],
)
def test_a_matrix_gets_the_type_that_llama_quantize_gives_it(path, columns, file, kind):
    assert type_of(path, columns, SEVEN_B, file) == kind


def test_windows_are_scored_as_the_command_perplexity_scores_them(tmp_path):
    params = load(dtype="float32")
    text = tmp_path / "text"
    text.write_text("Once upon a time there was a llama. " * 20)
    asked = argparse.Namespace(text=Path(text), windows=2, tokens=24)
    windows = quality.windows_of(params, asked)
    nll = quality.scorer(params, windows)(params)
    rows = [
        score.logprobs for score in llama_jax.score(params, [list(map(int, w)) for w in windows])
    ]
    np.testing.assert_allclose(nll, [-np.mean(row) for row in rows], rtol=1e-5)
    cached = quality.cached_nll(params, windows, llama_jax.KVCache)
    np.testing.assert_allclose(cached, nll, rtol=1e-5)


def test_a_difference_is_told_with_its_standard_error_over_the_windows():
    change, error = quality.change_of(np.array([0.01, 0.02, 0.03]))
    assert math.isclose(change, 100 * math.expm1(0.02))
    assert math.isclose(error, 100 * 0.01 / math.sqrt(3))


def test_the_order_of_channels_and_heads_changes_nothing_that_a_model_computes(tmp_path):
    config = config_of(dim=64, n_heads=8, n_kv_heads=2, head_dim=8, hidden_dim=96)
    params = llama_jax.init_params(jax.random.key(0), config)
    positions = jnp.arange(12)[None]
    tokens = positions % config.vocab_size
    again = reordered(params, 1)
    for path in weight_table(config):
        one, other = (np.asarray(weight_at(model.weights, path)) for model in (params, again))
        assert one.shape == other.shape
        assert one.ndim == 1 or not np.array_equal(one, other)
    logits = [llama_jax.forward(model, tokens, positions)[0] for model in (params, again)]
    np.testing.assert_allclose(logits[1], logits[0], atol=1e-5)
