"""A weight that is no array passes every door that an array passes."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import check_same, edit_manifest, run
from jax.sharding import PartitionSpec as P
from toy_weight import GROUP, Scaled

import llama_jax
from llama_jax.checkpoint import shapes
from llama_jax.checkpoint.reading import open_checkpoint
from llama_jax.weights.params import nested, weight_at
from llama_jax.weights.table import weight_table
from llama_jax.weights.weight import (
    KINDS,
    PartAxis,
    Weight,
    check_groups,
    part_shape,
    part_spec,
    register_weight,
)


@pytest.fixture(autouse=True)
def toy_kind():
    register_weight(Scaled)
    yield
    del KINDS[Scaled.kind]


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def models(request):
    """A model whose matrices are values, and the same with the arrays that they stand for."""
    config = llama_jax.Config.named("tiny").replace(
        tie_embeddings=request.param, dim=128, n_heads=8, n_kv_heads=8, head_dim=16, hidden_dim=256
    )
    params = llama_jax.init_params(jax.random.key(0), config)
    values, dense = {}, {}
    for path, row in weight_table(config).items():
        array = weight_at(params.weights, path)
        values[path] = Scaled.of(array) if len(row.shape) == 2 else array
        dense[path] = values[path].dense() if len(row.shape) == 2 else array
    return params.replace(weights=nested(values)), params.replace(weights=nested(dense))


def test_the_toy_has_no_more_than_the_protocol_asks_for():
    """What passes the doors below passes by the protocol alone."""
    own = {name for name in vars(Scaled) if not name.startswith("_")} - {"of", "values", "scale"}
    asked = {name for name in vars(Weight) if not name.startswith("_")}
    assert own | {"dtype"} == asked | {"kind"}


ASKED = {"max_new_tokens": 6, "temperature": 0.0}
PROMPTS = [[1, 2, 3], [7, 8, 9, 10, 11]]


def tokens(params):
    return [done.tokens for done in llama_jax.generate(params, PROMPTS, **ASKED)]


def test_a_model_of_values_computes_what_its_arrays_compute(models):
    values, dense = models
    text = jnp.array([[1, 2, 3, 4]])
    positions = jnp.arange(4)[None]
    ours, _ = jax.jit(llama_jax.forward)(values, text, positions)
    wanted, _ = jax.jit(llama_jax.forward)(dense, text, positions)
    np.testing.assert_allclose(ours, wanted, rtol=1e-4, atol=1e-5)
    assert tokens(values) == tokens(dense)
    scores = [llama_jax.score(params, [[1, 2, 3, 4]])[0].nll for params in models]
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)
    sharded = llama_jax.shard_params(values, llama_jax.make_mesh(fsdp=2, tensor=2))
    (over_a_mesh,) = llama_jax.score(sharded, [[1, 2, 3, 4]])
    assert over_a_mesh.nll == pytest.approx(scores[1], rel=1e-5)


def test_size_counts_numbers_and_nbytes_counts_parts(models):
    values, dense = models
    assert values.size == dense.size
    assert values.dtype == dense.dtype
    matrices = sum(
        row.shape[0] * row.shape[1]
        for row in weight_table(values.config).values()
        if len(row.shape) == 2
    )
    assert dense.nbytes - values.nbytes == matrices * 4 - matrices * (1 + 4 / GROUP)


@pytest.mark.parametrize("sizes", [{"tensor": 4}, {"fsdp": 2, "tensor": 2}, {"data": 2}], ids=str)
def test_a_model_of_values_is_cut_over_a_mesh(models, sizes):
    values, _ = models
    mesh = llama_jax.make_mesh(**sizes)
    sharded = llama_jax.shard_params(values, mesh)
    wq = sharded.weights["layers_0"]["attention"]["wq"]
    fsdp, tensor = sizes.get("fsdp", 1), sizes.get("tensor", 1)
    parts = [part.addressable_shards[0].data.shape for part in (wq.values, wq.scale)]
    assert parts == [(128 // fsdp, 128 // tensor), (128 // GROUP // fsdp, 128 // tensor)]
    assert tokens(sharded) == tokens(values)
    assert sharded.size == values.size
    assert sharded.nbytes == values.nbytes


def test_a_width_of_values_is_padded(models):
    """248 over 8 devices is 31 each: outputs may be cut so, and inputs in groups of 8 may not."""
    values, _ = models
    config = values.config.replace(hidden_dim=248)
    weights = {**values.weights}
    for i in range(config.n_layers):
        layer = {**weights[f"layers_{i}"]}
        ffn = {name: w.dense() for name, w in layer["feed_forward"].items()}
        cut = {"w1": ffn["w1"][:, :248], "w3": ffn["w3"][:, :248], "w2": ffn["w2"][:248]}
        layer["feed_forward"] = {name: Scaled.of(w) for name, w in cut.items()}
        weights[f"layers_{i}"] = layer
    odd = values.replace(weights=weights, config=config)
    with pytest.raises(ValueError, match=r"layers_0.feed_forward.w2: scale covers groups of 8"):
        llama_jax.shard_params(odd, llama_jax.make_mesh(tensor=8))
    for i in range(config.n_layers):  # w2 as an array may be cut anywhere
        ffn = odd.weights[f"layers_{i}"]["feed_forward"]
        ffn["w2"] = ffn["w2"].dense()
    sharded = llama_jax.shard_params(odd, llama_jax.make_mesh(tensor=8))
    w1 = sharded.weights["layers_0"]["feed_forward"]["w1"]
    assert (w1.shape, w1.scale.shape) == ((128, 248), (16, 248))
    assert tokens(sharded) == tokens(odd)


def test_zeros_follow_a_vocabulary_that_the_mesh_does_not_divide(models):
    values, _ = models
    config = values.config.replace(vocab_size=232)  # 29 a device
    embedding = values.weights["tok_embeddings"]["weight"].dense()[:232]
    weights = {**values.weights, "tok_embeddings": {"weight": embedding}}
    if not config.tie_embeddings:
        output = values.weights["output"]["weight"].dense()[:, :230]
        config = config.replace(vocab_size=230)
        weights["tok_embeddings"] = {"weight": embedding[:230]}
        weights["output"] = {"weight": Scaled.of(output)}
    odd = values.replace(weights=weights, config=config)
    sharded = llama_jax.shard_params(odd, llama_jax.make_mesh(tensor=8))
    assert sharded.size == odd.size
    assert sharded.nbytes == odd.nbytes
    assert tokens(sharded) == tokens(odd)
    if not config.tie_embeddings:
        assert sharded.weights["output"]["weight"].scale.shape == (16, 232)


@pytest.mark.parametrize("sizes", [{}, {"fsdp": 2, "tensor": 2}], ids=["one device", "a mesh"])
def test_a_checkpoint_of_values_comes_back(models, tmp_path, sizes):
    values, _ = models
    mesh = llama_jax.make_mesh(**sizes) if sizes else None
    laid_out = values if mesh is None else llama_jax.shard_params(values, mesh)
    llama_jax.save(laid_out, tmp_path / "model")
    loaded = llama_jax.load(tmp_path / "model", mesh=mesh)
    check_same(loaded, values)
    assert tokens(loaded) == tokens(values)
    expected = shapes(tmp_path / "model", mesh=mesh)
    assert jax.tree.structure(expected.weights) == jax.tree.structure(loaded.weights)
    for shape, leaf in zip(
        jax.tree.leaves(expected.weights), jax.tree.leaves(loaded.weights), strict=True
    ):
        assert (shape.shape, shape.dtype, shape.sharding) == (leaf.shape, leaf.dtype, leaf.sharding)


def test_what_was_saved_from_a_padded_mesh_has_no_padding(models, tmp_path):
    values, _ = models
    sharded = llama_jax.shard_params(values, llama_jax.make_mesh(tensor=8))
    llama_jax.save(sharded, tmp_path / "model")
    check_same(llama_jax.load(tmp_path / "model"), values)


def test_a_dtype_asked_of_load_is_that_of_the_activations(models, tmp_path):
    values, _ = models
    llama_jax.save(values, tmp_path / "model")
    half = llama_jax.load(tmp_path / "model", dtype="bfloat16")
    wq = half.weights["layers_0"]["attention"]["wq"]
    assert (half.dtype, wq.values.dtype, wq.scale.dtype) == (jnp.bfloat16, jnp.int8, jnp.float32)
    assert half.weights["norm"]["scale"].dtype == jnp.bfloat16


@pytest.mark.parametrize("sizes", [{}, {"fsdp": 2, "tensor": 2}], ids=["one device", "a mesh"])
def test_inspect_and_verify_read_a_checkpoint_of_values(models, tmp_path, sizes):
    values, dense = models
    laid_out = llama_jax.shard_params(values, llama_jax.make_mesh(**sizes)) if sizes else values
    llama_jax.save(laid_out, tmp_path / "model")
    llama_jax.save(dense, tmp_path / "dense")
    told = run("inspect", tmp_path / "model", "--json")
    assert told.exit_code == 0, told.output
    stored = json.loads(told.stdout)
    assert "toy-scaled" in json.dumps(stored)
    source = open_checkpoint(tmp_path / "model")
    path = ("layers_0", "attention", "wq")
    np.testing.assert_array_equal(source.tensors[path][...], weight_at(dense.weights, path))
    compared = run("verify", tmp_path / "model", tmp_path / "dense")
    assert compared.exit_code == 0, compared.output


def test_a_checkpoint_of_values_converts_to_another(models, tmp_path):
    values, _ = models
    llama_jax.save(values, tmp_path / "model")
    done = run("convert", tmp_path / "model", tmp_path / "again")
    assert done.exit_code == 0, done.output
    check_same(llama_jax.load(tmp_path / "again"), values)


def test_a_kind_that_nobody_defined_is_refused_with_the_way_out(models, tmp_path):
    values, _ = models
    llama_jax.save(values, tmp_path / "model")
    manifest = tmp_path / "model" / "checkpoint.json"
    assert json.loads(manifest.read_text())["version"] == 2
    edit_manifest(manifest.parent, lambda text: text.replace("toy-scaled", "unheard-of"))
    with pytest.raises(ValueError, match=r"kind .unheard-of.*this program knows .*toy-scaled"):
        llama_jax.load(tmp_path / "model")


def test_constants_that_the_kind_refuses_name_the_weight(models, tmp_path):
    values, _ = models
    llama_jax.save(values, tmp_path / "model")
    edit_manifest(tmp_path / "model", lambda text: text.replace('"group": 8', '"group": 9', 1))
    with pytest.raises(ValueError, match=r"tok_embeddings.weight is no whole weight.*group=9"):
        llama_jax.load(tmp_path / "model")


def test_a_checkpoint_of_arrays_is_still_of_version_1(models, tmp_path):
    _, dense = models
    llama_jax.save(dense, tmp_path / "model")
    assert json.loads((tmp_path / "model" / "checkpoint.json").read_text())["version"] == 1


def test_a_mesh_that_splits_a_group_is_refused():
    weight = Scaled.of(np.ones((24, 16), np.float32))
    mesh = llama_jax.make_mesh(tensor=2)
    sharding = jax.sharding.NamedSharding(mesh, P("tensor", None))
    with pytest.raises(ValueError, match=r"w: scale covers groups of 8 along axis 0.*\[24, 16\]"):
        check_groups("w", weight, (24, 16), sharding)
    check_groups("w", weight, (32, 16), sharding)


def test_a_parts_shape_and_spec_follow_its_axes():
    axes = (PartAxis(0, per=8), PartAxis(1))
    assert part_shape(axes, (20, 6)) == (3, 6)
    assert part_spec(axes, P("fsdp", "tensor")) == P("fsdp", "tensor")
    assert part_spec((PartAxis(1),), P("fsdp")) == P(None)
    assert part_spec((PartAxis(1),), P(("tensor", "copies"), "fsdp")) == P("fsdp")
