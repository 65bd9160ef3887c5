"""`quantize`, `load(quantize=...)` and `convert --quantize` give one model."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import check_same, run

import llama_jax
from llama_jax.checkpoint import shapes
from llama_jax.checkpoint.inspection import inspect_checkpoint
from llama_jax.model.memory import memory
from llama_jax.weights.fp8 import Fp8
from llama_jax.weights.int4 import Int4
from llama_jax.weights.int8 import Int8

CONFIG = llama_jax.Config.named("tiny").replace(n_layers=1, hidden_dim=176)


@pytest.fixture(scope="module")
def params():
    return llama_jax.init_params(jax.random.key(0), CONFIG)


@pytest.fixture(scope="module")
def saved(params, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model"
    llama_jax.save(params, path)
    return path


def test_matrices_are_rounded_and_the_embedding_and_norms_stay(params):
    found = llama_jax.quantize(params, "int4")
    layer = found.weights["layers_0"]
    assert isinstance(layer["attention"]["wq"], Int4)
    assert isinstance(found.weights["output"]["weight"], Int4)
    assert isinstance(layer["feed_forward"]["w2"], Int8), "176 inputs are no groups of 32"
    assert found.weights["tok_embeddings"] == params.weights["tok_embeddings"]
    assert layer["ffn_norm"] == params.weights["layers_0"]["ffn_norm"]
    assert (found.size, found.dtype) == (params.size, params.dtype)
    assert isinstance(params.weights["layers_0"]["attention"]["wq"], jax.Array)


def test_a_rule_names_the_kind_of_each_matrix(params):
    kinds = {"tok_embeddings.weight": "int8", "layers_0.attention.wq": "fp8"}
    found = llama_jax.quantize(params, kinds.get)
    assert isinstance(found.weights["tok_embeddings"]["weight"], Int8)
    assert isinstance(found.weights["layers_0"]["attention"]["wq"], Fp8)
    assert (
        found.weights["layers_0"]["attention"]["wk"]
        is (params.weights["layers_0"]["attention"]["wk"])
    )


def test_scales_of_int8_are_one_for_each_32_inputs_or_one_an_output(params):
    for kind, groups in (("int8", 32), ("int8_channel", None)):
        layer = llama_jax.quantize(params, kind).weights["layers_0"]
        assert layer["attention"]["wq"].group == groups
        assert layer["feed_forward"]["w2"].group is None, "176 inputs are no groups of 32"


@pytest.mark.parametrize("kind", ["int8", "int8_channel", "int4", "fp8"])
def test_load_and_convert_round_as_quantize_does(params, saved, tmp_path, kind):
    wanted = llama_jax.quantize(params, kind)
    check_same(llama_jax.load(saved, quantize=kind), wanted)
    done = run("convert", saved, tmp_path / "small", "--quantize", kind)
    assert done.exit_code == 0, done.output
    check_same(llama_jax.load(tmp_path / "small"), wanted)
    found = inspect_checkpoint(tmp_path / "small")
    assert found.parameters[kind.removesuffix("_channel")] > 0.5 * params.size
    stored = found.source.tensors
    needed = memory(CONFIG, dtype="float32", batch=1, context=1, stored=stored)
    assert needed.weights == wanted.nbytes
    for asked in (shapes(saved, quantize=kind), shapes(tmp_path / "small")):
        assert jax.tree.structure(asked.weights) == jax.tree.structure(wanted.weights)


def test_the_activations_may_be_narrower(saved):
    found = llama_jax.load(saved, quantize="int8", dtype="bfloat16")
    wide = llama_jax.load(saved, quantize="int8")
    one, other = (p.weights["layers_0"]["attention"]["wo"] for p in (found, wide))
    assert (found.dtype, one.dtype) == (jnp.bfloat16, jnp.bfloat16)
    np.testing.assert_array_equal(one.values, other.values)  # rounded once, from float32
    np.testing.assert_array_equal(one.scale, other.scale)


def test_on_a_mesh_a_weights_parts_are_cut_as_it_was(params, saved):
    mesh = llama_jax.make_mesh(fsdp=2, tensor=2)
    wanted = llama_jax.quantize(params, "int8")
    found = llama_jax.load(saved, mesh=mesh, quantize="int8")
    check_same(found, wanted)
    leaves = map(jax.tree.leaves, (found.weights, llama_jax.shard_params(wanted, mesh).weights))
    for one, other in zip(*leaves, strict=True):
        assert one.sharding == other.sharding
    with pytest.raises(ValueError, match=r"layers_0.attention.wq: words covers groups of 32"):
        llama_jax.load(saved, mesh=llama_jax.make_mesh(fsdp=4), quantize="int4")


def test_what_cannot_be_rounded_is_refused_in_the_words_of_the_caller(params, saved, tmp_path):
    with pytest.raises(
        ValueError, match="quantize='int2' is no kind; use one of int8, int8_channel, int4"
    ):
        llama_jax.quantize(params, "int2")
    with pytest.raises(ValueError, match=r"quantize='q' for tok_embeddings\.weight is no kind"):
        llama_jax.quantize(params, lambda name: "q")
    small = llama_jax.quantize(params, "int8")
    llama_jax.save(small, tmp_path / "small")
    for again in (
        lambda: llama_jax.quantize(small, "int8"),
        lambda: llama_jax.load(tmp_path / "small", quantize="int4"),
    ):
        with pytest.raises(ValueError, match=r"layers_0.attention.wq is int8 already; quantize"):
            again()
    bad = (("int2", "--quantize 'int2' is no kind", 2), ("int8", "is int8 already", 1))
    for asked, said, code in bad:
        done = run("convert", tmp_path / "small", tmp_path / "again", "--quantize", asked)
        assert (done.exit_code, said in done.stderr) == (code, True), done.output
        assert not (tmp_path / "again").exists()
    assert "what `llama-jax convert --quantize none` makes of this one" in done.stderr


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_arrays_made_of_a_quantized_checkpoint_are_rounded_anew(params, tmp_path, kind):
    llama_jax.save(llama_jax.quantize(params, "int8"), tmp_path / "small")
    for source, destination, asked in (("small", "arrays", "none"), ("arrays", "again", kind)):
        done = run("convert", tmp_path / source, tmp_path / destination, "--quantize", asked)
        assert done.exit_code == 0, done.output
    wq = llama_jax.load(tmp_path / "again").weights["layers_0"]["attention"]["wq"]
    assert wq.kind == kind


def test_generate_rounds_as_it_loads_and_keeps_an_int8_cache(saved):
    asked = ("--ids", "-n", "6", "-t", "0", "--quantize", "int4", "--cache", "int8", "--json")
    done = run("generate", saved, "1 2 3", *asked)
    assert done.exit_code == 0, done.output
    small = llama_jax.load(saved, quantize="int4")
    (wanted,) = llama_jax.generate(
        small, [[1, 2, 3]], max_new_tokens=6, temperature=0.0, cache=llama_jax.Int8KVCache
    )
    assert json.loads(done.stdout)["tokens"] == wanted.tokens
