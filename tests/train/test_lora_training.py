"""Adapters are trained, and nothing else: their gradients, their state, and a run of them."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from collectives import collectives
from short_runs import end_after, losses, recipe_of
from single_steps import batch_of, close
from single_steps import recipe_of as step_recipe
from token_files import token_folder
from toy_weight import Scaled

import llama_jax
from llama_jax.checkpoint.native import weight_files
from llama_jax.model.transformer import init_params
from llama_jax.sharding.adapters import (
    adapters_of,
    merge,
    random_adapters,
    with_adapters,
    without_adapters,
)
from llama_jax.sharding.arrays import shard_params
from llama_jax.sharding.mesh import make_mesh
from llama_jax.train.batches import batch_sharding
from llama_jax.train.recipe import Lora, Model
from llama_jax.train.recipe_file import read_recipe
from llama_jax.train.report import flops_per_token
from llama_jax.train.run import train
from llama_jax.train.state import new_state
from llama_jax.train.step import jitted_step, loss_and_gradients
from llama_jax.weights.lora import Lora as LoraWeight
from llama_jax.weights.params import nested, weight_at
from llama_jax.weights.table import weight_table
from llama_jax.weights.weight import KINDS

PATHS = [
    ("layers_0", *place)
    for place in (("attention", "wq"), ("attention", "wo"), ("feed_forward", "w2"))
]
LORA = Lora(rank=4, targets=("wq", "wo", "w2"))


@pytest.fixture(scope="module")
def config():
    return llama_jax.Config.named("tiny").replace(n_layers=1)


@pytest.fixture(scope="module")
def params(config):
    return init_params(jax.random.key(0), config)


@pytest.fixture(scope="module")
def adapted(params):
    """A model with adapters of which neither matrix is zero."""
    adapters = random_adapters(jax.random.key(1), params, PATHS, 4, 2.0)
    filled = {
        path: dataclasses.replace(one, b=0.1 * jax.random.normal(jax.random.key(i), one.b.shape))
        for i, (path, one) in enumerate(adapters.items())
    }
    return with_adapters(params, filled)


def gradients_of(config, params, **step):
    recipe = step_recipe(**step)
    return jax.jit(loss_and_gradients, static_argnums=0)(recipe.step, params, batch_of(config))


@pytest.fixture(scope="module")
def gradients(config, adapted):
    return gradients_of(config, adapted)


def test_the_gradients_are_those_of_the_merged_weights_by_the_chain_rule(
    config, adapted, gradients
):
    loss, found = gradients
    merged_loss, whole = gradients_of(config, merge(adapted))
    assert abs(float(loss - merged_loss)) < 1e-6
    assert set(found) == {".".join(path) for path in PATHS}
    for path in PATHS:
        weight, d_w = weight_at(adapted.weights, path), weight_at(whole.weights, path)
        d_a, d_b = 2.0 * d_w @ weight.b.T, 2.0 * weight.a.T @ d_w
        np.testing.assert_allclose(found[".".join(path)].a, d_a, atol=1e-6)
        np.testing.assert_allclose(found[".".join(path)].b, d_b, atol=1e-6)


def test_neither_a_mesh_nor_micro_batches_nor_remat_change_a_gradient(config, adapted, gradients):
    sharded = shard_params(adapted, make_mesh(fsdp=2, tensor=2))
    loss, found = gradients_of(config, sharded, micro_batches=2, remat="layer")
    np.testing.assert_allclose(loss, gradients[0], rtol=1e-6)  # of 5.5, whose float32 ends at 5e-7
    close(found, gradients[1], 1e-6)


@pytest.mark.parametrize("kind", ["none", "int8"])
def test_over_fsdp_no_gradient_of_a_frozen_weight_is_made(kind, config, params, adapted):
    """Of an adapter's matrices, whose gradients are added, none has as many numbers."""
    base = llama_jax.quantize(params, kind) if kind != "none" else params
    base = with_adapters(base, adapters_of(adapted))
    mesh, step = make_mesh(fsdp=2), step_recipe(remat="layer").step
    cut, batch = shard_params(base, mesh), batch_of(config)
    given = cut, jax.device_put(batch, batch_sharding(mesh, len(batch.tokens)))
    compute = jax.jit(loss_and_gradients, static_argnums=0)
    with jax.set_mesh(mesh):
        text = compute.lower(step, *given).compile().as_text()
        found = compute(step, *given)
    sums = [c for c in collectives(text, mesh) if c.kind in ("all-reduce", "reduce-scatter")]
    smallest = min(np.prod(weight_at(base.weights, path).shape) for path in PATHS)
    assert 0 < max(one.size for one in sums) <= LORA.rank * config.hidden_dim < smallest // 2
    close(found[1], compute(step, base, batch)[1], 1e-6)


@pytest.mark.slow
def test_adapters_are_trained_on_quantized_weights(config, adapted, monkeypatch):
    """Every matrix a value of int8 numbers, the embedding and the output too."""
    monkeypatch.setitem(KINDS, Scaled.kind, Scaled)
    values, dense = {}, {}
    for path, row in weight_table(config).items():
        weight = weight_at(adapted.weights, path)
        base = weight.base if isinstance(weight, LoraWeight) else weight
        base = Scaled.of(base) if len(row.shape) == 2 else base
        array = base.dense() if isinstance(base, Scaled) else base
        values[path], dense[path] = base, array
        if isinstance(weight, LoraWeight):
            values[path] = LoraWeight.of(base, weight.adapter)
            dense[path] = LoraWeight.of(array, weight.adapter)
    ours, wanted = (
        gradients_of(config, adapted.replace(weights=nested(each))) for each in (values, dense)
    )
    close(ours, wanted, 1e-6)


def test_a_step_changes_the_adapters_alone_and_keeps_moments_of_nothing_else(config, params):
    recipe = step_recipe(average=0.5).replace(lora=LORA)
    begun = with_adapters(params, random_adapters(jax.random.key(1), params, PATHS, 4, 4.0))
    state, step = new_state(recipe, begun), jitted_step(recipe)
    arrays = [leaf for leaf in jax.tree.leaves(state.moments) if leaf.ndim]
    trained = 2 * sum(4 * sum(weight_at(params.weights, path).shape) for path in PATHS)
    assert sum(leaf.size for leaf in arrays) == trained
    first = []
    for _ in range(3):
        state, metrics = step(state, batch_of(config))
        first.append(float(metrics.loss))
    assert first[2] < first[0]
    before, after = jax.tree.leaves(params), jax.tree.leaves(without_adapters(state.params))
    for one, other in zip(before, after, strict=True):
        assert one is other, "a frozen weight was copied or changed"
    for path in PATHS:
        weight = weight_at(state.params.weights, path)
        assert isinstance(weight, LoraWeight)
        assert float(jnp.abs(weight.b).max()) > 0
    assert set(state.average) == {".".join(path) for path in PATHS}


@pytest.fixture(scope="module")
def data(tmp_path_factory, config):
    """A folder of tokens, and a checkpoint of random weights with their tokenizer."""
    folder = tmp_path_factory.mktemp("data")
    tokens = token_folder(folder)
    tokenizer = folder / "sentencepiece" / "tokenizer.model"
    vocabulary = llama_jax.load_tokenizer(tokenizer).vocab_size
    params = init_params(jax.random.key(3), config.replace(vocab_size=vocabulary)).replace(
        tokenizer=tokenizer
    )
    llama_jax.save(params, folder / "base")
    return tokens, folder / "base"


def lora_recipe(data, **changes):
    tokens, base = data
    recipe = recipe_of(tokens, run={"save_every": 4, "evaluate_every": 0}, **changes)
    return recipe.replace(model=Model(checkpoint=str(base)), lora=LORA)


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    folder, said = tmp_path_factory.mktemp("run") / "run", []
    train(lora_recipe(data), folder, say=said.append)
    return folder, said


def test_a_run_trains_adapters_and_its_model_opens(data, whole):
    folder, said = whole
    told = r"2,048 parameters of adapters, over [\d,]+ that stay as they are, on one device"
    assert re.match(told, said[0])
    loss = losses(folder)
    assert loss[8][0] < loss[1][0]
    model = llama_jax.load(folder / "model")
    base = llama_jax.load(data[1])
    for one, other in zip(
        jax.tree.leaves(without_adapters(model)), jax.tree.leaves(base), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    assert isinstance(weight_at(model.weights, PATHS[0]), LoraWeight)


def test_a_run_writes_the_frozen_weights_once(data, monkeypatch, tmp_path):
    """A start does it again: what lies in the folder, this process did not write."""
    names, fill = [], weight_files.fill

    def noted(directory, path, *rest):
        names.append(weight_files.name(path))
        return fill(directory, path, *rest)

    monkeypatch.setattr(weight_files, "fill", noted)
    for start, saved in ((1, 2), (2, 3)):  # at steps 4 and 8, and when nothing is left
        train(lora_recipe(data), tmp_path / "run", say=lambda line: None)
        assert names.count("tok_embeddings.weight") == start
        assert names.count("layers_0.attention.wq.a") == saved


def test_saved_states_hold_the_adapters_and_not_the_frozen_weights(data, whole):
    names = json.dumps([file.name for file in (whole[0] / "states").rglob("*")])
    text = (
        "".join(
            file.read_text() for file in (whole[0] / "states").rglob("_METADATA") if file.is_file()
        )
        + names
    )
    assert "params.layers_0.attention.wq.a" in text
    assert "tok_embeddings" not in text


def test_a_run_of_adapters_goes_on_with_the_same_weights(data, whole, tmp_path):
    wanted = llama_jax.load(whole[0] / "model").weights
    end_after(3, lora_recipe(data), tmp_path / "run")
    opened = llama_jax.load(tmp_path / "run" / "model")
    assert isinstance(weight_at(opened.weights, PATHS[0]), LoraWeight)
    train(lora_recipe(data), tmp_path / "run", say=lambda line: None)
    found = llama_jax.load(tmp_path / "run" / "model").weights
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


@pytest.mark.slow
def test_a_run_of_adapters_goes_on_on_a_mesh(data, whole, tmp_path):
    wanted = llama_jax.load(whole[0] / "model").weights
    end_after(3, lora_recipe(data), tmp_path / "run")
    opened = llama_jax.load(tmp_path / "run" / "model")
    asked = {"max_new_tokens": 4, "temperature": 0.0}
    found = [llama_jax.generate(one, [[1, 2, 3]], **asked)[0] for one in (opened, merge(opened))]
    assert found[0].tokens == found[1].tokens
    train(lora_recipe(data, mesh={"fsdp": 2, "tensor": 2}), tmp_path / "run", say=lambda line: None)
    found = llama_jax.load(tmp_path / "run" / "model").weights
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, wanted)


def test_adapters_on_adapters_are_refused(data, whole, tmp_path):
    recipe = lora_recipe((data[0], whole[0] / "model"))
    with pytest.raises(ValueError, match=r"has adapters already.*llama-jax merge .*model DEST"):
        train(recipe, tmp_path / "run", say=lambda line: None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (['lora.targets=["q_proj"]'], r"targets has 'q_proj', and can have 'wq', 'wk'"),
        (["lora.targets=wq"], r"targets='wq' must be a list of strings"),
        (["lora.rank=0"], r"rank=0 must"),
        (["lora.alpha=0"], r"alpha=0 would train adapters that change nothing"),
        (["lora.ranks=8"], r"the key 'ranks' is unknown; did you mean rank"),
    ],
)
def test_a_wrong_lora_table_says_what_it_takes(changes, message, tmp_path):
    file = tmp_path / "r.toml"
    file.write_text('steps = 10\n[model]\ncheckpoint = "x"\n[optimizer]\nwarmup = 1\n')
    with pytest.raises(ValueError, match=message):
        read_recipe(file, changes)


def test_set_adds_a_lora_table_and_a_random_model_has_none(tmp_path):
    file = tmp_path / "r.toml"
    file.write_text('steps = 10\n[model]\ncheckpoint = "x"\n[optimizer]\nwarmup = 1\n')
    recipe = read_recipe(file, ["lora.rank=2", 'lora.targets=["wq", "wv"]'])
    assert recipe.lora == Lora(rank=2, targets=("wq", "wv"))
    file.write_text('steps = 10\n[model]\nconfig = "tiny"\n[optimizer]\nwarmup = 1\n[lora]\n')
    recipe = read_recipe(file, [f'tokens="{token_folder(tmp_path)}"'])
    with pytest.raises(ValueError, match=r"\[lora\] trains adapters of a checkpoint"):
        train(recipe, tmp_path / "run", say=lambda line: None)
    assert not (tmp_path / "run").exists()


def test_frozen_matrices_count_no_gradient(config):
    six, four = flops_per_token(config, 0), flops_per_token(config, 0, frozen=True)
    assert four / six == pytest.approx(2 / 3)
