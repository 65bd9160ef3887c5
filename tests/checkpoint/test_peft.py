"""Adapters of peft's: read, written, refused where they are more than two matrices, merged."""

import json
import re

import jax
import numpy as np
import pytest
from helpers import config_of, run

import llama_jax
from llama_jax.checkpoint import shapes
from llama_jax.checkpoint.export import export
from llama_jax.checkpoint.files.safetensors_file import read_safetensors
from llama_jax.checkpoint.merge import merge_checkpoint
from llama_jax.checkpoint.peft import open_peft, patterns
from llama_jax.checkpoint.peft.config import read_peft_config
from llama_jax.sharding.adapters import adapters_of, put_adapters, with_adapters
from llama_jax.weights.lora import Adapter, scale_of
from llama_jax.weights.params import weight_at
from llama_jax.weights.table import weight_table

CONFIG = config_of(n_heads=4, n_kv_heads=2)
QK = ("layers_0", "attention", "wk")
TOKENS = np.array([[1, 5, 9, 100, 7, 3]])
POSITIONS = np.arange(6)[None]


def adapters_for(config, targets, rank, scale):
    rng, found = np.random.default_rng(0), {}
    for path, row in weight_table(config).items():
        if path[-1] in targets:
            a = rng.normal(size=(row.shape[0], rank), scale=0.2).astype(np.float32)
            b = rng.normal(size=(rank, row.shape[1]), scale=0.2).astype(np.float32)
            found[path] = Adapter(a, b, scale)
    return found


def adapted_model(targets=("wq", "wk", "wo", "w2"), rank=3, scale=0.5, config=CONFIG):
    params = llama_jax.init_params(jax.random.key(0), config)
    return with_adapters(params, put_adapters(params, adapters_for(config, targets, rank, scale)))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A model with adapters, the model without them, and the adapters as peft's."""
    root, model = tmp_path_factory.mktemp("peft"), adapted_model()
    llama_jax.save(model, root / "adapted")
    llama_jax.save(llama_jax.init_params(jax.random.key(0), CONFIG), root / "base")
    export(root / "adapted", root / "peft", format="peft", base="someone/base")
    return root


def logits(params):
    return np.asarray(jax.jit(llama_jax.forward)(params, TOKENS, POSITIONS)[0])


@pytest.fixture
def edited(folders, tmp_path):
    """The adapter's folder with some fields of its config changed."""

    def edit(**fields):
        folder = tmp_path / "edited"
        folder.mkdir(exist_ok=True)
        for name in ("adapter_model.safetensors", "adapter_config.json"):
            (folder / name).write_bytes((folders / "peft" / name).read_bytes())
        said = json.loads((folder / "adapter_config.json").read_text()) | fields
        (folder / "adapter_config.json").write_text(json.dumps(said))
        return folder

    return edit


def test_what_is_written_comes_back_beside_the_base(folders):
    model = llama_jax.load(folders / "base", adapter=folders / "peft")
    wanted = llama_jax.load(folders / "adapted")
    assert jax.tree.structure(model) == jax.tree.structure(wanted)
    jax.tree.map(np.testing.assert_array_equal, model, wanted)
    expected = shapes(folders / "base", adapter=folders / "peft")
    assert jax.tree.structure(expected) == jax.tree.structure(model)
    for shape, leaf in zip(jax.tree.leaves(expected), jax.tree.leaves(model), strict=True):
        assert (shape.shape, shape.dtype, shape.sharding) == (leaf.shape, leaf.dtype, leaf.sharding)


def test_rows_of_q_and_k_lie_as_hugging_faces_weights_do(folders):
    """Head by head: all first numbers of the pairs that RoPE turns, then all second ones."""
    tensors = read_safetensors(folders / "peft" / "adapter_model.safetensors")
    ours = adapters_of(adapted_model())
    module = "base_model.model.model.layers.0.self_attn.{}_proj.lora_{}.weight"
    np.testing.assert_array_equal(tensors[module.format("k", "A")], ours[QK].a.T)
    for start in range(0, 2 * CONFIG.head_dim, CONFIG.head_dim):
        head = np.asarray(ours[QK].b)[:, start : start + CONFIG.head_dim]
        wanted = np.concatenate([head[:, ::2], head[:, 1::2]], axis=1).T
        rows = tensors[module.format("k", "B")][start : start + CONFIG.head_dim]
        np.testing.assert_array_equal(rows, wanted)
    wo = ours["layers_0", "attention", "wo"]
    np.testing.assert_array_equal(tensors[module.format("o", "B")], wo.b.T)


def test_the_config_that_is_written_says_rank_scale_and_targets(folders):
    said = json.loads((folders / "peft" / "adapter_config.json").read_text())
    assert (said["r"], said["lora_alpha"], said["use_rslora"]) == (3, 1.5, False)
    assert said["target_modules"] == ["down_proj", "k_proj", "o_proj", "q_proj"]
    assert said["base_model_name_or_path"] == "someone/base"


def test_rank_stabilised_adapters_come_back(tmp_path):
    llama_jax.save(adapted_model(("wv",), 8, scale_of(8, 16.0, True)), tmp_path / "adapted")
    export(tmp_path / "adapted", tmp_path / "peft", format="peft")
    said = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert (said["lora_alpha"], said["use_rslora"]) == (16, True)
    (first, *_) = open_peft(tmp_path / "peft", CONFIG, tmp_path).values()
    assert first.scale == pytest.approx(scale_of(8, 16.0, True), rel=1e-12)


def test_adapters_that_differ_get_patterns(tmp_path):
    params = llama_jax.init_params(jax.random.key(0), CONFIG)
    given = adapters_for(CONFIG, ("wq", "w1"), 4, 2.0)
    given |= {
        path: Adapter(one.a[:, :2], one.b[:2], 3.0)
        for path, one in given.items()
        if path[0] == "layers_1" and path[-1] == "wq"
    }
    llama_jax.save(with_adapters(params, put_adapters(params, given)), tmp_path / "adapted")
    export(tmp_path / "adapted", tmp_path / "peft", format="peft")
    said = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert said["rank_pattern"] == {"model.layers.1.self_attn.q_proj": 2}
    assert said["alpha_pattern"] == {"model.layers.1.self_attn.q_proj": 6}
    found = open_peft(tmp_path / "peft", CONFIG, tmp_path)
    assert {path: (one.rank, one.scale) for path, one in found.items()} == {
        path: (one.rank, one.scale) for path, one in given.items()
    }


def test_patterns_are_of_the_ends_of_names(edited):
    folder = edited(r=3, lora_alpha=6, alpha_pattern={"q_proj": 12, r"layers\.1\..*k_proj": 3})
    said = read_peft_config(folder / "adapter_config.json")
    modules = ("0.self_attn.q_proj", "0.self_attn.k_proj", "1.self_attn.k_proj")
    assert [said.scale_of(f"model.layers.{module}") for module in modules] == [4.0, 2.0, 1.0]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"use_dora": True}, r"adapter_config.json: use_dora=true is not supported; merge it"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save=a list is not supported"),
        ({"bias": "all"}, r'bias="all" trains biases, which are not read'),
        ({"peft_type": "IA3"}, r'of the kind "IA3"; only LORA is read'),
        ({"task_type": "SEQ_CLS"}, r'task_type="SEQ_CLS" is no language model'),
        ({"init_lora_weights": "pissa"}, r'init_lora_weights="pissa" changed the base'),
        ({"fan_in_fan_out": True}, r"fan_in_fan_out=true is not supported"),
        ({"some_new_variant": {"of": 2027}}, r"some_new_variant=a dict is not supported"),
        ({"r": 0}, r"r=0 must be a positive integer"),
        ({"rank_pattern": ["q_proj"]}, r"rank_pattern=a list must be an object"),
        ({"rank_pattern": {"(": 2}}, r"rank_pattern: the pattern \"\(\" is none: missing \)"),
        ({"rank_pattern": {"(((a{9}){9}){9}){99}": 2}}, r"rank_pattern: the counts of .* too much"),
        ({"alpha_pattern": {"a{1000000}": 2}}, r"alpha_pattern: the counts of .* too much"),
        ({"rank_pattern": {f"{'x' * 99}{{100}}{n}": 2 for n in range(11)}}, r"repeat too much"),
        ({"rank_pattern": {"(?R)": 2}}, r"rank_pattern: the pattern \"\(\?R\)\" is none: unknown"),
        ({"alpha_pattern": {"(?:(?R)|x)": 2}}, r"alpha_pattern: the pattern .* is none: unknown"),
        ({"rank_pattern": {"(?:q_proj){e<=3}": 2}}, r"\{e<=3\}\" has a \{ that counts nothing"),
        ({"rank_pattern": {"x" * 513: 2}}, r"rank_pattern has a key of 513 characters"),
        ({"rank_pattern": {f"{n}": 2 for n in range(4097)}}, r"rank_pattern has 4,097 keys"),
        ({"alpha_pattern": {r"(\w|\w\w|\w\w\w|\.)+\d": 2}}, r"s alpha_pattern, .* 0.05 seconds"),
        ({"r": 5}, r"lora_A of .* has shape \[3, 64\].* a rank of 5 it would be \[5, 64\]"),
    ],
)
def test_what_is_more_than_two_matrices_is_refused_by_name(
    edited, folders, fields, message, monkeypatch
):
    monkeypatch.setattr(patterns, "MAX_SECONDS", 0.05)
    with pytest.raises(ValueError, match=message):
        llama_jax.load(folders / "base", adapter=edited(**fields))


@pytest.mark.parametrize("sizes", [{"dim": 32}, {"n_layers": 1}, {"n_kv_heads": 1}], ids=str)
def test_an_adapter_of_another_model_names_both(folders, sizes):
    with pytest.raises(ValueError, match=r"peft.*the model in here.*it is of 'someone/base'"):
        open_peft(folders / "peft", config_of(**sizes), "here")


def test_an_adapter_where_a_model_should_be_says_what_it_is(folders):
    with pytest.raises(FileNotFoundError, match=r"a LoRA adapter alone; open the model.*--adapter"):
        llama_jax.load(folders / "peft")
    with pytest.raises(FileNotFoundError, match=r"base has no adapter_config.json"):
        llama_jax.load(folders / "base", adapter=folders / "base")
    with pytest.raises(ValueError, match=r"adapted has adapters already; merge them first"):
        llama_jax.load(folders / "adapted", adapter=folders / "peft")


def test_every_way_to_merge_gives_the_same_weights(folders, tmp_path):
    adapted = llama_jax.load(folders / "adapted")
    wanted = llama_jax.merge(adapted)
    assert not adapters_of(wanted)
    np.testing.assert_allclose(logits(wanted), logits(adapted), atol=1e-5)
    merge_checkpoint(folders / "adapted", tmp_path / "of the run")
    merge_checkpoint(folders / "base", tmp_path / "of peft", adapter=folders / "peft")
    export(folders / "base", tmp_path / "hf", format="hf", adapter=folders / "peft")
    for name in ("of the run", "of peft", "hf"):
        found = llama_jax.load(tmp_path / name)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, wanted)


def test_a_merge_says_what_rounding_loses(folders, tmp_path):
    exact = np.float64(weight_at(llama_jax.load(folders / "base").weights, QK))
    one = adapters_of(llama_jax.load(folders / "adapted"))[QK]
    added = np.float64(one.a) @ np.float64(one.b) * one.scale
    done = merge_checkpoint(folders / "adapted", tmp_path / "half", dtype="bfloat16")
    name = ".".join(QK)
    found = np.float64(weight_at(llama_jax.load(tmp_path / "half", dtype="float32").weights, QK))
    lost = np.sum((found - (exact + added)) ** 2)
    assert done.rounding.lost[name] == pytest.approx(lost, rel=1e-6)
    assert done.rounding.added[name] == pytest.approx(np.sum(added**2), rel=1e-6)
    assert 1e-4 < done.rounding.part < 1e-2
    said = run("merge", folders / "base", tmp_path / "whole", "--adapter", folders / "peft")
    assert said.exit_code == 0, said.output
    assert "adapters of 8 weights; the errors of rounding are" in said.output


def test_a_merge_on_a_mesh_keeps_the_weights_where_they_are(folders):
    mesh = llama_jax.make_mesh(fsdp=2, tensor=2)
    adapted = llama_jax.load(folders / "base", mesh=mesh, adapter=folders / "peft")
    merged, plain = llama_jax.merge(adapted), llama_jax.load(folders / "base", mesh=mesh)
    for one, other in zip(jax.tree.leaves(merged), jax.tree.leaves(plain), strict=True):
        assert one.sharding == other.sharding
    wanted = llama_jax.merge(llama_jax.load(folders / "adapted"))
    np.testing.assert_allclose(
        weight_at(merged.weights, QK), weight_at(wanted.weights, QK), atol=1e-6
    )


def test_export_takes_an_adapter_and_gives_it_back(folders, tmp_path):
    asked = ("--format", "peft", "--adapter", folders / "peft", "--base", "someone/base")
    said = run("export", folders / "base", tmp_path / "again", *asked)
    assert said.exit_code == 0, said.output
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (folders / "peft" / name).read_bytes()


@pytest.mark.slow
def test_generate_takes_an_adapter(folders):
    given = ("--ids", "1 5 9", "--json", "-n", "3", "-t", "0")
    ours = run("generate", folders / "base", *given, "--adapter", folders / "peft")
    assert ours.exit_code == 0, ours.output
    wanted = run("generate", folders / "adapted", *given)
    assert json.loads(ours.stdout)["tokens"] == json.loads(wanted.stdout)["tokens"]


def test_what_has_no_adapter_is_neither_merged_nor_written_as_one(folders, tmp_path):
    with pytest.raises(ValueError, match=r"base has no adapters to merge.*--adapter"):
        merge_checkpoint(folders / "base", tmp_path / "out")
    with pytest.raises(
        ValueError, match=r"base has no adapters, which are all that .* by adapter=, or"
    ):
        export(folders / "base", tmp_path / "out", format="peft")
    with pytest.raises(ValueError, match=r"base='x' is what peft's format names"):
        export(folders / "base", tmp_path / "out", format="hf", base="x")
    assert not (tmp_path / "out").exists()


def test_inspect_says_what_an_adapter_holds_alone_and_with_its_model(folders, edited):
    alone = run("inspect", "--adapter", folders / "peft").stdout
    assert re.search(r"adapter  LoRA, [\d,]+ numbers in float32", alone)
    assert re.search(r"rank  3\n +alpha  1.5, a scale of 0.5 \(alpha / rank\)\n", alone)
    matrices = 4 * CONFIG.n_layers
    said = f"targets  q_proj, k_proj, o_proj, down_proj; {matrices} matrices in {CONFIG.n_layers}"
    assert said in alone
    assert "base  someone/base" in alone
    for base, shown in (
        ("\x1b[31ma\n  rank  9", r"\x1b[31ma\n  rank  9"),
        ("\x9b2J\u202e", r"\x9b2J"),
    ):
        spoken = run("inspect", "--adapter", edited(base_model_name_or_path=base)).stdout
        assert f"base  {shown}" in spoken, "a terminal obeys some letters"
    both = run("inspect", folders / "base", "--adapter", folders / "peft").stdout
    assert alone in both
    assert "parameters" in both
    found = json.loads(run("inspect", "--adapter", edited(use_rslora=True), "--json").stdout)
    assert (found["rank"], found["scale"]) == (3, pytest.approx(1.5 / 3**0.5))
    assert set(found["ranks"].values()) == {3}


def test_inspect_refuses_an_adapter_of_another_model_and_nothing_at_all(folders, tmp_path):
    other = llama_jax.init_params(jax.random.key(0), CONFIG.replace(n_layers=1))
    llama_jax.save(other, tmp_path / "other")
    done = run("inspect", tmp_path / "other", "--adapter", folders / "peft")
    assert done.exit_code == 1
    assert "it is of 'someone/base'" in done.stderr
    assert run("inspect").exit_code == 2
