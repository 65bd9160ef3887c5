"""`inspect`: what a checkpoint is and will need, held against the arrays themselves."""

import json

import jax
import jax.numpy as jnp
import pytest
from helpers import GOLDEN_META, run

import llama_jax
from llama_jax.checkpoint.convert import convert
from llama_jax.checkpoint.inspection import inspect_checkpoint
from llama_jax.config import Config
from llama_jax.model.cache import KVCache
from llama_jax.model.memory import memory
from llama_jax.sharding.arrays import shard_params
from llama_jax.sharding.mesh import make_mesh
from llama_jax.sharding.specs import CACHE
from llama_jax.weights.params import Params

WIDE = Config.named("tiny").replace(n_heads=8, n_kv_heads=8, head_dim=8)
MESHES = [(1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 1, 4), (2, 2, 2), (1, 1, 8)]


@pytest.mark.parametrize(("data", "fsdp", "tensor"), MESHES)
@pytest.mark.parametrize("biases", [False, True], ids=["plain", "biases"])
def test_the_numbers_are_those_of_the_arrays_on_devices(data, fsdp, tensor, biases):
    config = WIDE.replace(attention_bias=biases, mlp_bias=biases)
    sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
    needed = memory(config, dtype="bfloat16", batch=8, context=48, **sizes)
    mesh = make_mesh(**sizes)
    params = llama_jax.init_params(jax.random.key(0), config, jnp.bfloat16)
    params = shard_params(params, mesh)
    cache = KVCache.empty(config, batch=8, slots=48, dtype=jnp.bfloat16)
    cache = jax.device_put(cache, jax.sharding.NamedSharding(mesh, CACHE))

    def on(device, tree):
        return sum(
            shard.data.nbytes
            for leaf in jax.tree.leaves(tree)
            for shard in leaf.addressable_shards
            if shard.device == device
        )

    for device in mesh.devices.flat:
        assert on(device, params) == needed.weights_per_device
        assert on(device, cache) == needed.cache_per_device
    assert needed.devices == data * fsdp * tensor
    assert needed.weights == needed.weights_per_device * needed.devices
    assert needed.per_device == needed.weights_per_device + needed.cache_per_device


def test_llama_3_1_70b_on_eight_devices_that_are_not_there():
    config = Config.named("llama-3.1-70b")
    needed = memory(config, dtype="bfloat16", batch=16, context=8192, tensor=8)
    assert needed.weights_per_device == pytest.approx(141.1e9 / 8, rel=1e-3)
    assert needed.cache_per_device == 2 * 80 * 16 * 8 * 8192 * 128 * 2 // 8
    whole = memory(config, dtype="float32", batch=16, context=8192)
    assert whole.cache == 2 * whole.per_device - 2 * whole.weights - whole.cache


def test_rows_that_a_mesh_does_not_divide_are_padded():
    one = memory(WIDE, dtype="float32", batch=1, context=16)
    eight = memory(WIDE, dtype="float32", batch=1, context=16, data=8)
    assert one.cache_per_device == eight.cache_per_device


def test_padded_rows_are_said():
    assert memory(WIDE, dtype="float32", batch=3, context=16, data=2, fsdp=2).rows == 4
    mesh = ("--tensor", 2, "--data", 2)
    small = ("inspect", GOLDEN_META / "llama2-gqa", "--context", 16)
    assert (
        "3 rows (padded to 4, which data x fsdp divides)" in run(*small, *mesh, "--batch", 3).stdout
    )
    assert "padded" not in run(*small, *mesh, "--batch", 4).stdout


def test_a_context_that_the_model_has_not_is_refused():
    with pytest.raises(ValueError, match=r"context=1000 is beyond max_seq_len=\d+.*lower it"):
        memory(WIDE.replace(max_seq_len=64), dtype="float32", batch=1, context=1000)
    result = run("inspect", GOLDEN_META / "llama1", "--context", 2049)
    assert result.exit_code == 2
    assert "--context 2049 is beyond max_seq_len=2048" in result.stderr


def test_a_mesh_that_cannot_be_is_refused_with_the_rule():
    with pytest.raises(ValueError, match="tensor=3 does not divide n_heads=8"):
        memory(Config.named("tiny"), dtype="float32", batch=1, context=1, tensor=3)
    with pytest.raises(ValueError, match="batch=0 must be at least 1"):
        memory(WIDE, dtype="float32", batch=0, context=1)
    with pytest.raises(ValueError, match="int4"):
        memory(WIDE, dtype="int4", batch=1, context=1)


def test_files_and_dtypes_are_counted(tmp_path):
    meta = inspect_checkpoint(GOLDEN_META / "llama2-gqa")
    assert (meta.source.format, meta.files) == ("meta", 4)
    assert meta.disk_bytes == sum(f.stat().st_size for f in GOLDEN_META.glob("llama2-gqa/*.pth"))
    convert(GOLDEN_META / "llama2-gqa", tmp_path / "native", dtype="float32")
    native = inspect_checkpoint(tmp_path / "native")
    assert native.source.format == "native"
    (count,) = native.parameters.values()
    assert native.parameters == {"float32": count}
    assert native.disk_bytes >= 4 * count
    assert count == llama_jax.load(tmp_path / "native").size
    weights = len(native.source.tensors)
    assert native.files == weights  # zarr.json and Orbax's marks are none
    shown = run("inspect", tmp_path / "native").stdout
    assert f"format  native, {weights} weights, " in shown


def test_the_command_says_all_there_is_to_know():
    sizes = ("--batch", 4, "--context", 1000, "--fsdp", 2, "--dtype", "bfloat16")
    result = run("inspect", GOLDEN_META / "llama3.1", *sizes)
    assert result.exit_code == 0, result.output
    for shown in (
        "a LLaMA of 326,112 parameters, none of Meta's",
        "heads  3 query, 1 key-value, of 32",
        "Llama 3 scaling by 8",
        "format  meta, 1 file of weights, 659.6 kB on disk",
        "tokenizer  none found",
        "to run  bfloat16, 4 rows of 1,000 positions, 2 devices (fsdp=2)",
        "weights  326.6 kB a device, 653.2 kB in all",
        "cache  512.0 kB a device, 1.02 MB in all; on a CPU twice that, where keys and values are",
        "together  838.6 kB a device, and room for activations",
    ):
        assert shown in result.stdout


def test_the_command_prints_json_for_programs():
    result = run("inspect", GOLDEN_META / "llama3", "--json", "--dtype", "float32")
    found = json.loads(result.stdout)
    assert Config.from_json(found["config"]).dim == 64
    assert found["memory"]["weights"] == 4 * found["parameters"]
    assert found["asked"]["context"] == found["config"]["max_seq_len"]
    assert found["memory"]["cache_dtype"] == "float32"
    assert found["dtypes"] == {"bfloat16": found["parameters"]}
    assert found["tokenizer"] is None


def test_a_cache_of_float32_is_the_same_on_a_cpu():
    assert "twice" not in run("inspect", GOLDEN_META / "llama3", "--dtype", "fp32").stdout


def test_without_a_dtype_it_is_what_would_run_here():
    model = GOLDEN_META / "llama3"
    assert "to run  float32 (what runs here), 1 row of" in run("inspect", model).stdout
    asked, given = (run("inspect", model, "--json", *more) for more in ((), ("--dtype", "float32")))
    assert asked.stdout == given.stdout
    assert llama_jax.load(model).dtype == json.loads(asked.stdout)["asked"]["dtype"]


def test_the_tokenizers_kind_is_told(shared):
    result = run("inspect", shared / "models/stories260K-meta")
    assert "tokenizer  SentencePiece, 512 tokens, tokenizer.model" in result.stdout


def test_a_mistake_is_one_line(tmp_path):
    for arguments, code, message in (
        ((tmp_path / "nothing",), 1, "does not exist"),
        ((GOLDEN_META / "llama3", "--tensor", 3), 2, "--tensor 3 does not divide"),
    ):
        result = run("inspect", *arguments)
        assert result.exit_code == code
        assert message in result.stderr
        assert result.stdout == ""


def test_nothing_is_loaded(monkeypatch):
    monkeypatch.setattr(Params, "__init__", None)
    monkeypatch.setattr(jax, "make_array_from_callback", None)
    assert run("inspect", GOLDEN_META / "llama3").exit_code == 0
