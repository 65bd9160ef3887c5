"""The types that `bench.quality` gives matrices, and how it scores a text."""

import argparse
import math
from pathlib import Path

import numpy as np
import pytest

import llama_jax
from bench import quality
from bench.ggml import type_of
from llama_jax.checkpoint import load

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
