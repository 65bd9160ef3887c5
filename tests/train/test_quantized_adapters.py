"""Adapters on the weights of a quantized GGUF file: trained, saved and merged."""

import gguf_file
import jax
import numpy as np
import pytest
from short_runs import losses
from token_files import token_folder

import llama_jax
from llama_jax.checkpoint.merge import merge_checkpoint
from llama_jax.sharding.adapters import without_adapters
from llama_jax.train.recipe import Lora, Model, Optimizer, Recipe, Run, Step
from llama_jax.train.run import train
from llama_jax.weights.lora import Lora as LoraWeight
from llama_jax.weights.params import weight_at

Q4_1, Q8_0, GROUP = 3, 8, 32
KINDS = {("attention", "wq"): "int8", ("feed_forward", "w2"): "int4"}


def quantized(rng, kind, shape):
    """A tensor of random codes, of about the size of random weights."""
    groups = int(np.prod(shape)) // GROUP

    def halves(value):
        return np.full((groups, 1), value, "<f2").view(np.uint8)

    codes = rng.integers(0, 256, (groups, 32 if kind == Q8_0 else 16), np.uint8)
    scales = [halves(2e-3)] if kind == Q8_0 else [halves(0.03), halves(-0.225)]
    return kind, shape, np.concatenate([*scales, codes], 1).tobytes()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder of tokens, and a GGUF file: attention in Q8_0, feed-forward in Q4_1."""
    folder = tmp_path_factory.mktemp("quantized")
    tokens = token_folder(folder)
    tokenizer = folder / "sentencepiece/tokenizer.model"
    vocabulary = llama_jax.load_tokenizer(tokenizer).vocab_size
    metadata, tensors = gguf_file.small_model(layers=1, vocab=vocabulary)
    rng = np.random.default_rng(0)
    for name, (_, shape, _) in tensors.items():
        if name.startswith("blk.") and len(shape) == 2:
            kind = Q8_0 if "attn" in name else Q4_1
            tensors[name] = quantized(rng, kind, shape)
    metadata |= gguf_file.sentencepiece_metadata(tokenizer.read_bytes())
    (folder / "model.gguf").write_bytes(gguf_file.gguf_bytes(metadata, tensors))
    return tokens, folder / "model.gguf"


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    tokens, file = data
    recipe = Recipe(
        steps=4,
        tokens=str(tokens),
        model=Model(checkpoint=str(file)),
        optimizer=Optimizer(warmup=1, learning_rate=0.05, schedule="constant"),
        step=Step(batch=8, context=16, dtype="float32", remat="none"),
        run=Run(save_every=0, evaluate_every=0, sample_every=0, print_every=1, peak_tflops=1.0),
        lora=Lora(rank=4, targets=("wq", "w2")),
    )
    folder = tmp_path_factory.mktemp("run") / "run"
    model = train(recipe, folder, say=lambda line: None)
    return model, [loss for taken in losses(folder).values() for loss in taken]


def test_the_codes_stay_and_the_loss_falls(data, run):
    model, loss = llama_jax.load(run[0]), run[1]
    assert loss[-1] < loss[0] - 0.1
    for place, kind in KINDS.items():
        assert weight_at(model.weights, ("layers_0", *place)).base.kind == kind
    base = llama_jax.load(data[1])
    pairs = zip(jax.tree.leaves(without_adapters(model)), jax.tree.leaves(base), strict=True)
    for one, other in pairs:
        np.testing.assert_array_equal(one, other)


def test_merged_weights_are_the_dequantised_ones_plus_the_products_and_compute_the_same(
    run, tmp_path
):
    model = llama_jax.load(run[0])
    done = merge_checkpoint(run[0], tmp_path / "merged", dtype="float32")
    assert done.adapted == len(KINDS)
    merged = llama_jax.load(tmp_path / "merged")
    for place in KINDS:
        weight = weight_at(model.weights, ("layers_0", *place))
        assert isinstance(weight, LoraWeight)
        base, a, b = (np.asarray(x, np.float64) for x in (weight.base.dense(), weight.a, weight.b))
        found = np.asarray(weight_at(merged.weights, ("layers_0", *place)))
        np.testing.assert_allclose(found, base + a @ b * weight.scale, atol=1e-6)
    ids = np.arange(12)[None]
    ours, theirs = (jax.jit(llama_jax.forward)(one, ids, ids)[0] for one in (model, merged))
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())
