"""The native checkpoint: whole or absent, streamed, restored onto any sharding."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from helpers import ROOT, config_of, files_no_larger_than, in_a_process, two_shards
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from memory import AnonymousPeak

from llama_jax.checkpoint import native
from llama_jax.checkpoint.files import atomic
from llama_jax.checkpoint.names import names_table
from llama_jax.checkpoint.native import checked, transfers, weight_files
from llama_jax.checkpoint.reading import open_checkpoint

BF16 = np.dtype(ml_dtypes.bfloat16)
EMBEDDING, NORM = ("tok_embeddings", "weight"), ("norm", "scale")


@pytest.fixture
def small():
    return config_of()


@pytest.fixture
def tensors(small):
    rng = np.random.default_rng(0)
    found = {w.path: rng.standard_normal(w.shape, dtype=np.float32) for w in names_table(small)}
    found[NORM][:] = 0  # a weight of nothing but the fill value is stored like any other
    return found


def flat(weights):
    leaves = jax.tree_util.tree_flatten_with_path(weights)[0]
    return {tuple(key.key for key in keys): leaf for keys, leaf in leaves}


def assert_same(weights, tensors, dtype=np.float32):
    found = flat(weights)
    assert found.keys() == tensors.keys()
    for path, leaf in found.items():
        assert leaf.dtype == dtype
        np.testing.assert_array_equal(np.asarray(leaf), np.asarray(tensors[path]).astype(dtype))


def entries(folder):
    return sorted(entry.name for entry in folder.iterdir())


def test_what_is_written_is_read(tmp_path, small, tensors):
    tokenizer = tmp_path / "tokenizer.model"
    tokenizer.write_bytes(b"pieces")
    told = []
    source = {"path": "/somewhere", "format": "meta"}
    written = native.write(
        tmp_path / "new" / "model",
        small,
        tensors,
        tokenizer=tokenizer,
        source=lambda: source,
        progress=lambda done, total: told.append((done, total)),
    )
    dst = tmp_path / "new" / "model"
    assert entries(dst.parent) == ["model"]
    assert entries(dst) == ["checkpoint.json", "config.json", "tokenizer.model", "weights"]
    assert native.is_native(dst)
    assert native.read_config(dst) == small
    assert json.loads((dst / "config.json").read_text()) == small.to_json()
    info = native.read_info(dst)
    assert (info["format"], info["version"], info["dtype"]) == ("llama_jax", 1, "float32")
    assert (info["tokenizer"], info["source"]) == ("tokenizer.model", source)
    assert (dst / "tokenizer.model").read_bytes() == b"pieces"
    size = sum(tensor.nbytes for tensor in tensors.values())
    assert (written.tensors, written.bytes, written.dtypes) == (len(tensors), size, ("float32",))
    assert written.warnings == ()
    assert told == sorted(told)
    assert told[-1] == (size, size)
    assert_same(native.read_weights(dst, small), tensors)


def test_plain_orbax_restores_it_onto_any_sharding(tmp_path, small, tensors, capfd):
    import orbax.checkpoint as ocp

    native.write(tmp_path / "model", small, tensors)
    assert capfd.readouterr() == ("", "")
    mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    sharding = {1: NamedSharding(mesh, P("y")), 2: NamedSharding(mesh, P("x"))}
    target = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, jnp.bfloat16, sharding=sharding[a.ndim]),
        native.read_weights(tmp_path / "model", small),
    )
    with ocp.StandardCheckpointer() as checkpointer:
        restored = checkpointer.restore(tmp_path / "model" / "weights", target)
    assert_same(restored, tensors, jnp.bfloat16)
    assert all(leaf.sharding == sharding[leaf.ndim] for leaf in jax.tree.leaves(restored))
    with ocp.StandardCheckpointer() as checkpointer:
        assert_same(checkpointer.restore(tmp_path / "model" / "weights"), tensors)


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("wanted", ["float32", "bfloat16", "float16"])
def test_every_dtype_becomes_every_other_when_written_and_when_read(
    tmp_path, small, tensors, stored, wanted
):
    tensors = {path: tensor.astype(jnp.dtype(stored)) for path, tensor in tensors.items()}
    written = native.write(tmp_path / "cast", small, tensors, dtype=wanted)
    assert written.dtypes == (wanted,)
    assert_same(native.read_weights(tmp_path / "cast", small), tensors, jnp.dtype(wanted))
    native.write(tmp_path / "kept", small, tensors)
    kept = native.read_weights(tmp_path / "kept", small, dtype=jnp.dtype(wanted))
    assert_same(kept, tensors, jnp.dtype(wanted))


def test_tensors_keep_their_own_dtypes(tmp_path, small, tensors):
    tensors[NORM] = tensors[NORM].astype(BF16)
    written = native.write(tmp_path / "model", small, tensors)
    assert written.dtypes == ("bfloat16", "float32")
    assert native.read_info(tmp_path / "model")["dtype"] == "mixed"
    found = flat(native.read_weights(tmp_path / "model", small))
    assert found[NORM].dtype == BF16
    assert found[EMBEDDING].dtype == np.float32


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_values_that_are_not_finite_are_counted(tmp_path, small, tensors, dtype):
    tensors = {path: tensor.astype(jnp.dtype(dtype)) for path, tensor in tensors.items()}
    tensors[EMBEDDING][3, 4:6] = np.nan, -np.inf
    tensors[NORM][5] = np.inf
    written = native.write(tmp_path / "model", small, tensors)
    assert written.warnings == (
        "tok_embeddings.weight: 2 values are not finite (NaN or infinity)",
        "norm.scale: 1 values are not finite (NaN or infinity)",
    )


def test_values_that_a_cast_makes_infinite_are_counted(tmp_path, small, tensors):
    tensors[EMBEDDING][3, 4:8] = 1e5, -7e4, np.inf, 65504
    written = native.write(tmp_path / "model", small, tensors, dtype="float16")
    assert written.warnings == (
        "tok_embeddings.weight: 1 values are not finite (NaN or infinity)",
        "tok_embeddings.weight: 2 values overflow float16 and became infinite; "
        "bfloat16 and float32 reach further",
    )


@pytest.mark.parametrize("spec", [P("x", "y"), P(None, "y"), P(("x", "y")), P()])
def test_sharded_arrays_are_saved_from_eight_devices_and_read_on_one_and_four(tmp_path, spec):
    config = config_of(dim=64, hidden_dim=1216, vocab_size=2048)
    mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    keys = jax.random.split(jax.random.key(0), len(names_table(config)))
    plain = {
        w.path: jax.random.normal(k, w.shape)
        for w, k in zip(names_table(config), keys, strict=True)
    }
    sharded = {
        path: jax.device_put(a, NamedSharding(mesh, spec if a.ndim == 2 else P()))
        for path, a in plain.items()
    }
    native.write(tmp_path / "model", config, sharded)
    one = native.read_weights(tmp_path / "model", config)
    assert_same(one, plain)
    assert all(leaf.devices() == {jax.devices()[0]} for leaf in jax.tree.leaves(one))
    mesh = jax.make_mesh((4,), ("z",), axis_types=(jax.sharding.AxisType.Auto,))
    for four in (P("z"), P(None, "z")):
        shardings = {
            path: NamedSharding(mesh, four if a.ndim == 2 else P()) for path, a in plain.items()
        }
        found = native.read_weights(tmp_path / "model", config, shardings=shardings)
        assert_same(found, plain)
        assert all(leaf.sharding == shardings[path] for path, leaf in flat(found).items())


def test_weights_read_may_be_donated(tmp_path, small, tensors):
    native.write(tmp_path / "model", small, tensors)
    weights = native.read_weights(tmp_path / "model", small)
    doubled = jax.jit(lambda tree: jax.tree.map(lambda a: a * 2, tree), donate_argnums=0)(weights)
    assert_same(doubled, {path: tensor * 2 for path, tensor in tensors.items()})


def test_a_device_reads_its_own_chunks_alone(tmp_path):
    """Tensor parallelism over eight processes reads an eighth of a checkpoint in each."""
    config = config_of(dim=64, hidden_dim=4096, n_layers=1)
    rng = np.random.default_rng(0)
    tensors = {w.path: rng.standard_normal(w.shape, dtype=np.float32) for w in names_table(config)}
    native.write(tmp_path / "model", config, tensors)
    path = ("layers_0", "feed_forward", "w1")
    (file,) = (tmp_path / "model" / "weights" / ".".join(path)).glob("c/*/*")
    content = bytearray(file.read_bytes())
    at = content.find(tensors[path][0, :512].tobytes())
    content[at] ^= 1
    file.write_bytes(content)
    store = weight_files.open_weight(tmp_path / "model" / "weights", path)
    np.testing.assert_array_equal(store[:, 512:].read().result(), tensors[path][:, 512:])
    with pytest.raises(ValueError, match=r"w1 cannot be read: .*digest"):
        native.read_weights(tmp_path / "model", config)


def test_small_weights_are_read_together_and_waited_for_once(tmp_path, small, tensors, monkeypatch):
    """To wait hands Python to another thread, for milliseconds each time."""
    native.write(tmp_path / "model", small, tensors)
    waits = []
    done = transfers.wait_for
    monkeypatch.setattr(transfers, "wait_for", lambda some: waits.append([*some]) or done(some))
    assert_same(native.read_weights(tmp_path / "model", small), tensors)
    assert [len(some) for some in waits] == [len(tensors)]


def test_what_is_on_its_way_is_bounded_in_bytes(tmp_path, small, tensors, monkeypatch):
    native.write(tmp_path / "model", small, tensors)
    largest = max(tensor.nbytes for tensor in tensors.values())
    monkeypatch.setattr(transfers, "MAX_BYTES", largest)
    waits = []
    done = transfers.wait_for
    monkeypatch.setattr(transfers, "wait_for", lambda some: waits.append([*some]) or done(some))
    assert_same(native.read_weights(tmp_path / "model", small), tensors)
    assert len(waits) > 2
    assert all(sum(move.nbytes for move in some) <= 2 * largest for some in waits)


# Whole or absent


class Stop(Exception):
    pass


@pytest.mark.parametrize("error", [Stop, KeyboardInterrupt])
def test_a_failure_halfway_leaves_nothing(tmp_path, small, tensors, error):
    def stop(done, total):
        if done > total / 2:
            raise error

    with pytest.raises(error):
        native.write(tmp_path / "model", small, tensors, progress=stop)
    assert entries(tmp_path) == []


def test_a_kill_halfway_leaves_nothing_that_loads_and_running_again_repairs_it(
    tmp_path, small, tensors
):
    code = """
import os, signal, numpy as np
from llama_jax.checkpoint import native
from llama_jax.checkpoint.names import names_table
from llama_jax.config import Config
import json, sys
config = Config.from_json(json.loads(sys.argv[1]))
def kill(done, total):
    if done > total / 2:
        os.kill(os.getpid(), signal.SIGKILL)
native.write(sys.argv[2], config, {w.path: np.zeros(w.shape, "f4") for w in names_table(config)},
             progress=kill)
"""
    command = [sys.executable, "-c", code, json.dumps(small.to_json()), str(tmp_path / "model")]
    killed = subprocess.run(command, cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert entries(tmp_path) == [".model.partial"]
    assert not native.is_native(tmp_path / "model")
    assert not native.is_native(tmp_path / ".model.partial")
    native.write(tmp_path / "model", small, tensors)
    assert entries(tmp_path) == ["model"]
    assert entries(tmp_path / "model") == ["checkpoint.json", "config.json", "weights"]
    assert_same(native.read_weights(tmp_path / "model", small), tensors)


def test_a_second_writer_is_told_of_the_first(tmp_path, small, tensors):
    refused = []

    def second(done, total):
        if not refused:
            with pytest.raises(
                FileExistsError, match=r"another process is writing .*model"
            ) as info:
                native.write(tmp_path / "model", small, tensors)
            refused.append(info)

    native.write(tmp_path / "model", small, tensors, progress=second)
    assert refused
    assert_same(native.read_weights(tmp_path / "model", small), tensors)


def test_an_existing_destination_is_refused_and_an_empty_one_filled(tmp_path, small, tensors):
    (tmp_path / "empty").mkdir()
    native.write(tmp_path / "empty", small, tensors)
    with pytest.raises(FileExistsError, match=r"already; remove it, or pass overwrite=True"):
        native.write(tmp_path / "empty", small, tensors)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "checkpoint.json").write_text('{"format": "theirs"}')
    for name in ("file", "folder"):
        with pytest.raises(FileExistsError, match=r"is not a llama_jax checkpoint, so it is not"):
            native.write(tmp_path / name, small, tensors, overwrite=True)
    assert entries(tmp_path) == ["empty", "file", "folder"]


def test_overwriting_keeps_the_old_checkpoint_until_the_new_one_is_whole(tmp_path, small, tensors):
    dst = tmp_path / "model"
    native.write(dst, small, tensors)
    newer = {path: tensor + 1 for path, tensor in tensors.items()}

    def stop(done, total):
        if done == total:
            assert_same(native.read_weights(dst, small), tensors)
            raise Stop

    with pytest.raises(Stop):
        native.write(dst, small, newer, overwrite=True, progress=stop)
    assert_same(native.read_weights(dst, small), tensors)
    native.write(dst, small, newer, overwrite=True)
    assert_same(native.read_weights(dst, small), newer)
    assert entries(tmp_path) == ["model"]


def test_a_checkpoint_set_aside_by_a_killed_overwrite_comes_back(tmp_path, small, tensors):
    native.write(tmp_path / "model", small, tensors)
    (tmp_path / "model" / atomic.LOCK).write_bytes(atomic.OURS)
    os.rename(tmp_path / "model", tmp_path / ".model.former")  # the moment between two renames

    def stop(done, total):
        raise Stop

    with pytest.raises(Stop):
        native.write(tmp_path / "model", small, tensors, progress=stop)
    assert_same(native.read_weights(tmp_path / "model", small), tensors)
    assert entries(tmp_path) == ["model"]


@pytest.mark.parametrize("name", [".model.partial", ".model.former"])
@pytest.mark.parametrize("kind", ["link", "folder", "lock of others", "other user"])
def test_what_others_put_where_we_write_is_neither_followed_nor_removed(
    tmp_path, small, tensors, monkeypatch, name, kind
):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "thesis.tex").write_text("years of work")
    if kind != "folder":
        (theirs / atomic.LOCK).write_bytes(b"mine" if kind == "lock of others" else atomic.OURS)
    if kind == "link":
        (tmp_path / name).symlink_to(theirs)
    else:
        theirs = theirs.rename(tmp_path / name)
    if kind == "other user":
        uid = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: uid + 1)
    before = entries(tmp_path)
    with pytest.raises(FileExistsError, match=rf"{name} is .*not touched: move or remove it"):
        native.write(tmp_path / "model", small, tensors)
    assert (theirs / "thesis.tex").read_text() == "years of work"
    assert entries(tmp_path) == before


@pytest.mark.parametrize("extra", ["thesis.tex", "weights/notes.txt"])
def test_a_checkpoint_that_somebody_added_to_is_not_overwritten(tmp_path, small, tensors, extra):
    native.write(tmp_path / "model", small, tensors)
    (tmp_path / "model" / extra).write_text("years of work")
    with pytest.raises(FileExistsError, match=f"model holds {extra}, which .*move that away first"):
        native.write(tmp_path / "model", small, tensors, overwrite=True)
    (tmp_path / "model" / extra).unlink()
    (tmp_path / "model" / atomic.LOCK).touch()  # killed when all was whole
    native.write(tmp_path / "model", small, tensors, overwrite=True)
    assert entries(tmp_path / "model") == ["checkpoint.json", "config.json", "weights"]


@pytest.mark.parametrize(
    "name", ["checkpoint.json", "config.json", "tokenizer.model", "weights", "weights/norm.scale/c"]
)
def test_a_link_out_of_a_checkpoint_is_refused(tmp_path, small, tensors, name):
    dst = tmp_path / "model"
    (tmp_path / "tokenizer.model").write_bytes(b"pieces")
    native.write(dst, small, tensors, tokenizer=tmp_path / "tokenizer.model")
    (tmp_path / "link").symlink_to(dst)  # a checkpoint may be reached through one
    assert open_checkpoint(tmp_path / "link").config == small
    outside = (dst / name).rename(tmp_path / "outside")
    (dst / name).symlink_to(outside)
    with pytest.raises(ValueError, match=f"{name} is a link out of the folder, to {outside}"):
        open_checkpoint(dst)


@pytest.mark.parametrize("version", [0, -1, True, "1", 1.0])
def test_a_version_is_a_whole_number_from_one(written, version):
    info = native.read_info(written) | {"version": version}
    (written / "checkpoint.json").write_text(json.dumps(info))
    with pytest.raises(ValueError, match=r"checkpoint\.json has version=.* an integer from 1"):
        native.read_config(written)


def test_a_directory_that_appears_meanwhile_is_not_replaced(tmp_path, small, tensors):
    def meanwhile(done, total):
        (tmp_path / "model").mkdir(exist_ok=True)
        (tmp_path / "model" / "thesis.tex").touch()

    with pytest.raises(FileExistsError, match="is there already"):
        native.write(tmp_path / "model", small, tensors, progress=meanwhile)
    assert entries(tmp_path / "model") == ["thesis.tex"]
    assert entries(tmp_path) == ["model"]


def test_a_full_disk_is_refused_beforehand_with_both_numbers(tmp_path, small, tensors, monkeypatch):
    usage = type("Usage", (), {"total": 20_000_000, "free": 10_000_000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    native.write(tmp_path / "fits", small, tensors)
    usage.free = 1000
    with pytest.raises(OSError, match=r"full needs [\d.]+ kB and .* has 1.0 kB free; make room"):
        native.write(tmp_path / "full", small, tensors)
    assert entries(tmp_path) == ["fits"]


def test_a_disk_that_fills_up_meanwhile_is_named(tmp_path, small, tensors):
    named = pytest.raises(OSError, match=r"cannot write .*tok_embeddings.weight: .*too large")
    with files_no_larger_than(20_000), named:
        native.write(tmp_path / "model", small, tensors)
    assert entries(tmp_path) == []


@pytest.mark.parametrize("size", [100, 1500])  # of a weight's description; of all weights'
def test_a_description_that_cannot_be_written_is_one_error_and_no_log(
    tmp_path, small, tensors, caplog, size
):
    named = pytest.raises(OSError, match=r"cannot write the checkpoint .*/model: .*too large")
    with files_no_larger_than(size), named:
        native.write(tmp_path / "model", small, tensors)
    assert entries(tmp_path) == []
    assert caplog.records == []


def test_a_system_error_names_the_checkpoint(tmp_path, small, tensors):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write the checkpoint .*file/model: "):
        native.write(tmp_path / "file" / "model", small, tensors)
    with pytest.raises(
        FileNotFoundError, match=r"No such file.*absent"
    ):  # before a byte is written
        native.write(tmp_path / "model", small, tensors, tokenizer=tmp_path / "absent")
    with pytest.raises(OSError, match="mount point"):
        native.write("/proc", small, tensors)


# What is refused


def test_tensors_that_are_not_the_models_are_refused(tmp_path, small, tensors):
    def refused(changed, message):
        with pytest.raises(ValueError, match=message):
            native.write(tmp_path / "model", small, changed)
        assert entries(tmp_path) == []

    refused({p: t for p, t in tensors.items() if p != NORM}, r"source lacks norm.scale of the 21")
    refused(tensors | {("norm", "bias"): tensors[NORM]}, r"source has norm.bias, which the config")
    refused({}, r"lacks tok_embeddings.weight, .* and 17 more of the 21 weights")
    refused(tensors | {NORM: tensors[NORM][:3]}, r"norm.scale .* has shape \(3,\); .* \(64,\)")
    refused(tensors | {NORM: tensors[NORM].astype(int)}, r"norm.scale .* is int64; a weight is one")
    with pytest.raises(ValueError, match="int8"):
        native.write(tmp_path / "model", small, tensors, dtype="int8")


@pytest.fixture
def written(tmp_path, small, tensors):
    native.write(tmp_path / "model", small, tensors)
    return tmp_path / "model"


def test_a_checkpoint_that_is_not_there_or_not_ours_says_so(tmp_path, small):
    assert not native.is_native(tmp_path)
    for read in (native.read_info, native.read_config):
        with pytest.raises(ValueError, match=r"checkpoint.json is missing"):
            read(tmp_path / "nowhere")
    (tmp_path / "checkpoint.json").write_text('{"step": 3}')
    with pytest.raises(ValueError, match="was not written by llama_jax"):
        native.read_weights(tmp_path, small)


def test_a_newer_checkpoint_is_refused_with_both_versions(written, small):
    info = native.read_info(written) | {"version": 3}
    (written / "checkpoint.json").write_text(json.dumps(info))
    reads = (native.read_info, native.read_config, lambda p: native.read_weights(p, small))
    for read in reads:
        with pytest.raises(ValueError, match=r"newer version \(3\); .* reads version 2; upgrade"):
            read(written)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"dim": 3}', "\udcff"])
def test_a_damaged_config_is_named(written, content):
    (written / "config.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=r"config\.json"):
        native.read_config(written)


@pytest.mark.parametrize("name", ["checkpoint.json", "config.json"])
@pytest.mark.parametrize(
    ("content", "message"),
    [("[" * 100_000, "is not JSON"), (" " * 4 * 2**20 + "{}", "more than 4,194,304 bytes")],
    ids=["deep", "large"],
)
def test_a_description_without_measure_is_refused(written, name, content, message):
    (written / name).write_text(content)
    with pytest.raises(ValueError, match=f"{name} .*{message}|{name} {message}") as refused:
        native.read_config(written)
    assert str(refused.value).count(str(written / name)) == 1


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: file.write_bytes(b""), "tok_embeddings.weight cannot be read"),
        (lambda file: file.write_bytes(file.read_bytes()[:-20]), "tok_embeddings.weight cannot be"),
        (lambda file: file.unlink(), "tok_embeddings.weight cannot be read: .* missing"),
        (lambda file: (file.parents[2] / "zarr.json").unlink(), "weights lacks tok_embeddings"),
        (lambda file: (file.parents[2] / "zarr.json").write_text("{"), "weight cannot be read"),
        (lambda file: (file.parents[2] / "zarr.json").write_text("{}"), "weight cannot be read"),
        (lambda file: file.parents[2].rename(file.parents[3] / "a.b"), "lacks tok_embeddings"),
        (lambda file: file.parents[3].rename(file.parents[4] / "w"), "no weights/"),
    ],
)
def test_damaged_weights_are_named(written, small, damage, message):
    (file,) = (written / "weights" / "tok_embeddings.weight").glob("c/*/*")
    damage(file)
    with pytest.raises(ValueError, match=message):
        native.read_weights(written, small)


def compressed(said):
    said["codecs"][0]["configuration"]["codecs"].insert(1, {"name": "gzip"})


def unsharded(said):
    said["codecs"] = [{"name": "bytes", "configuration": {"endian": "little"}}]


def tiny_chunks(said):
    said["codecs"][0]["configuration"]["chunk_shape"] = [1, 1]


def huge(said):
    said["shape"] = [2**40, 2**20]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            compressed,
            r"the codecs \['sharding_indexed'\], and in them \['bytes', 'gzip', 'crc32c'\]",
        ),
        (unsharded, r"the codecs \['bytes'\]"),
        (tiny_chunks, r"chunks of \[1, 1\] are too small"),
        (huge, r"4,611,686,018,427,387,904 bytes and its files have [0-9,]*, so some are missing"),
    ],
)
def test_a_weight_described_as_none_is_written_is_not_opened(
    written, small, change, message, monkeypatch
):
    file = written / "weights" / "tok_embeddings.weight" / "zarr.json"
    said = json.loads(file.read_text())
    change(said)
    file.write_text(json.dumps(said))
    monkeypatch.setattr(weight_files, "open_weights", None)
    with pytest.raises(ValueError, match=f"tok_embeddings.weight cannot be read: .*{message}"):
        native.read_weights(written, small)


def test_a_flipped_bit_is_noticed(written, small):
    (file,) = (written / "weights" / "tok_embeddings.weight").glob("c/*/*")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"tok_embeddings.weight cannot be read: .*digest"):
        native.read_weights(written, small)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A checkpoint with a tokenizer, to be copied."""
    folder, rng = tmp_path_factory.mktemp("whole"), np.random.default_rng(0)
    (folder / "tokenizer.model").write_bytes(b"pieces")
    config = config_of()
    weights = {w.path: rng.standard_normal(w.shape, dtype=np.float32) for w in names_table(config)}
    native.write(folder / "m", config, weights, tokenizer=folder / "tokenizer.model")
    return folder / "m"


def read_whole(path):
    config = native.read_config(path)
    return native.read_weights(path, config)


def test_a_flipped_bit_of_any_file_is_noticed(tmp_path, whole):
    shutil.copytree(whole, tmp_path / "m")
    files = sorted(file for file in (tmp_path / "m").rglob("*") if file.is_file())
    assert {"checkpoint.json", "config.json", "tokenizer.model", "zarr.json", "_METADATA"} < {
        file.name for file in files
    }
    rng, chunks = np.random.default_rng(1), 0
    for file in files:
        if chunk := file.parent.name != "m" and file.name.isdigit():
            chunks += 1
            if chunks > 3:
                continue
        content = file.read_bytes()
        for at in rng.integers(8 * len(content), size=2):
            broken = bytearray(content)
            broken[at // 8] ^= 1 << at % 8
            file.write_bytes(broken)
            with pytest.raises(ValueError, match=str(tmp_path / "m")):
                read_whole(tmp_path / "m") if chunk else native.read_config(tmp_path / "m")
        file.write_bytes(content)
    read_whole(tmp_path / "m")


def test_a_checkpoint_from_before_the_checksums_opens_and_one_half_of_them_does_not(
    tmp_path, whole
):
    shutil.copytree(whole, tmp_path / "m")
    manifest = tmp_path / "m" / "checkpoint.json"
    info = json.loads(manifest.read_text())
    for lost in ({"sha256"}, {"own_sha256"}):
        manifest.write_text(json.dumps({k: v for k, v in info.items() if k not in lost}))
        with pytest.raises(ValueError, match=r"checkpoint\.json does not have the checksum"):
            native.read_config(tmp_path / "m")
    lost = {"sha256", "own_sha256"}
    manifest.write_text(json.dumps({k: v for k, v in info.items() if k not in lost}))
    (tmp_path / "m" / "tokenizer.model").write_bytes(b"others")
    read_whole(tmp_path / "m")


def test_a_changed_file_is_named_with_the_way_out_and_a_lost_one_is_missing(tmp_path, whole):
    shutil.copytree(whole, tmp_path / "m")
    config = tmp_path / "m" / "config.json"
    config.write_text(config.read_text().replace('"max_seq_len": ', '"max_seq_len": 1'))
    way_out = r'config\.json .* that was you, take "sha256" and "own_sha256" out'
    with pytest.raises(ValueError, match=way_out):
        native.read_config(tmp_path / "m")
    shutil.copyfile(whole / "config.json", config)
    (tmp_path / "m" / "tokenizer.model").unlink()
    with pytest.raises(ValueError, match=r'checksum of "tokenizer\.model", which is missing'):
        native.read_config(tmp_path / "m")


@pytest.mark.parametrize(
    "name",
    [
        *("chat_template.jinja", "added_tokens.json", "tokenizer.json", "params.json"),
        "additional_chat_templates/rag.jinja",
    ],
)
def test_a_file_that_was_added_to_the_tokenizers_is_refused(tmp_path, whole, name):
    shutil.copytree(whole, tmp_path / "m")
    (tmp_path / "m" / "README.md").write_text("read by people alone")
    read_whole(tmp_path / "m")
    (tmp_path / "m" / name).parent.mkdir(exist_ok=True)
    (tmp_path / "m" / name).write_text("{}")
    said = rf"m/{re.escape(name)} would be read, and checkpoint\.json states no .* remove it"
    with pytest.raises(ValueError, match=said):
        native.read_config(tmp_path / "m")


def test_to_a_checkpoint_without_a_tokenizer_a_person_may_add_one(written):
    (written / "tokenizer.model").write_bytes(b"pieces")
    (written / "tokenizer_config.json").write_text("{}")
    read_whole(written)


@pytest.mark.parametrize("name", ["weights/../config.json", "./config.json", "/etc/passwd", ""])
def test_a_sum_is_of_a_file_under_one_name(tmp_path, whole, name):
    shutil.copytree(whole, tmp_path / "m")
    file = tmp_path / "m" / "checkpoint.json"
    info = json.loads(file.read_text())
    info["sha256"][name] = info["sha256"]["config.json"]
    info["own_sha256"] = checked.sum_of_rest(info)
    file.write_text(json.dumps(info))
    with pytest.raises(ValueError, match=rf'a checksum of "{re.escape(name)}", which is no file'):
        native.read_config(tmp_path / "m")


def test_weights_of_another_config_are_refused_before_they_are_read(written, small):
    for change, message in {
        "vocab_size": r"tok_embeddings.weight .* has shape \(130, 64\); .* \(131, 64\)",
        "n_layers": r"lacks layers_2.attention_norm.scale, .* and 5 more",
    }.items():
        with pytest.raises(ValueError, match=message):
            native.read_weights(written, small.replace(**{change: getattr(small, change) + 1}))
    with pytest.raises(ValueError, match=r"weights has output.weight, which the config does not"):
        native.read_weights(written, small.replace(tie_embeddings=True))


# Memory


def measure(config, folder):
    """Bytes and seconds of writing a checkpoint from two shards, and of reading it."""
    folder = Path(folder)
    tensors = two_shards(folder, config)
    jnp.zeros(()).block_until_ready()
    with AnonymousPeak() as writing:
        written = native.write(folder / "model", config, tensors)
    start = time.monotonic()
    with AnonymousPeak() as reading:
        weights = native.read_weights(folder / "model", config)
    read_seconds = time.monotonic() - start
    for path in (EMBEDDING, ("layers_0", "attention", "wo"), ("layers_0", "feed_forward", "w3")):
        np.testing.assert_array_equal(np.asarray(flat(weights)[path]), tensors[path][...])
    return {
        "bytes": written.bytes,
        "write_seconds": written.seconds,
        "write_peak": writing.peak,
        "write_added": writing.added,
        "read_seconds": read_seconds,
        "read_added": reading.added,
    }


def test_memory_is_a_few_blocks_to_write_and_one_copy_to_read(tmp_path):
    config = config_of(dim=1024, n_heads=8, hidden_dim=4096, n_layers=4, vocab_size=32000)
    found = measure(config, tmp_path)
    assert found["bytes"] > 200e6
    assert found["write_added"] < 250e6, found
    assert found["read_added"] < found["bytes"] + 250e6, found


@pytest.mark.slow
def test_two_gigabytes_are_written_in_well_below_1200_megabytes(tmp_path):
    """The sizes of Llama 3.2 1B, whose embedding alone takes 525 MB, in a process of its own."""
    config = config_of(
        dim=2048,
        n_layers=16,
        n_heads=32,
        n_kv_heads=8,
        hidden_dim=8192,
        vocab_size=128256,
        tie_embeddings=True,
    )
    found = in_a_process(measure, config, tmp_path)
    print(found)
    assert found["bytes"] > 2.4e9
    assert found["write_peak"] < 0.7e9, found
    assert found["read_added"] < 1.2 * found["bytes"], found
