"""A whole conversion: what it costs, and what it leaves behind when it fails."""

import hashlib
import json
import math
import os
import shutil
import sys
import time

import helpers
import ml_dtypes
import numpy as np
import pytest
import torch_zip
from helpers import ROOT
from memory import run_measured

import llama_jax
from llama_jax.checkpoint.convert import convert
from llama_jax.checkpoint.files.atomic import whole_directory
from llama_jax.checkpoint.files.torch_file import read_state_dict
from llama_jax.checkpoint.names import names_table

GOLDEN = helpers.GOLDEN / "meta"
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


@pytest.fixture
def source(tmp_path):
    """A copy of Meta's two-shard reference, for a test to break."""
    return shutil.copytree(GOLDEN / "llama3", tmp_path / "source")


def break_file(name, change):
    def broken(source):
        file = source / name
        file.write_bytes(change(file.read_bytes()))

    return broken


def rewrite(name, change):
    def broken(source):
        state = {key: np.array(value) for key, value in read_state_dict(source / name).items()}
        change(state)
        torch_zip.save(source / name, state)

    return broken


def evil(source):
    call = torch_zip.Call(torch_zip.Global("os", "system"), ("touch " + str(source / "ran"),))
    pickled = torch_zip.pickled(torch_zip.dump({"tok_embeddings.weight": call}))
    torch_zip.write(source / "consolidated.01.pth", pickled)


FIRST, SECOND = "consolidated.00.pth", "consolidated.01.pth"
BROKEN = {
    "truncated": (break_file(FIRST, lambda b: b[: len(b) // 2]), FIRST),
    "empty": (break_file(FIRST, lambda b: b""), FIRST),
    "missing shard": (lambda s: (s / SECOND).unlink(), SECOND),
    "missing first shard": (lambda s: (s / FIRST).unlink(), FIRST),
    "missing tensor": (rewrite(SECOND, lambda s: s.pop("norm.weight")), "norm.weight"),
    "unknown tensor": (rewrite(SECOND, lambda s: s.update(extra=np.zeros(1, "f4"))), "extra"),
    "wrong shape": (
        rewrite(FIRST, lambda s: s.update({"norm.weight": np.zeros(9, BFLOAT16)})),
        "norm.weight",
    ),
    "no params.json": (lambda s: (s / "params.json").unlink(), "params.json"),
    "broken params.json": (break_file("params.json", lambda b: b[:20]), "params.json"),
    "a pickle that calls os.system": (evil, "os.system"),
}


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("existing", [False, True], ids=["new", "overwrite"])
def test_a_broken_source_is_one_error_and_leaves_the_destination_as_it_was(
    source, tmp_path, kind, existing
):
    destination = tmp_path / "out"
    if existing:
        convert(source, destination)
    before = {f: f.stat().st_mtime_ns for f in destination.rglob("*")}
    damage, message = BROKEN[kind]
    damage(source)
    with pytest.raises((ValueError, FileNotFoundError), match=message.replace(".", r"\.")):
        convert(source, destination, overwrite=existing)
    assert {f: f.stat().st_mtime_ns for f in destination.rglob("*")} == before
    assert not (source / "ran").exists()
    assert [f.name for f in tmp_path.iterdir() if f.name.startswith(".")] == []
    if existing:
        llama_jax.load(destination)


def test_nan_is_a_warning_that_names_the_tensor(source, tmp_path):
    def poison(state):
        state["layers.1.feed_forward.w2.weight"][3, :2] = np.nan

    rewrite(SECOND, poison)(source)
    done = convert(source, tmp_path / "out")
    (warning,) = done.written.warnings
    assert "layers_1.feed_forward.w2" in warning
    assert "2 values are not finite" in warning


def test_a_file_full_of_nan_has_no_copies_to_speak_of(tmp_path):
    source = shutil.copytree(GOLDEN / "llama3.1", tmp_path / "source")
    rewrite(FIRST, lambda state: [value.fill(np.nan) for value in state.values()])(source)
    done = convert(source, tmp_path / "out")
    assert not any("copies" in note for note in done.source.notes)
    assert done.written.warnings


def test_a_broken_tokenizer_is_an_error_and_another_models_a_note(source, shared, tmp_path):
    (source / "tokenizer.model").write_bytes(b"garbage")
    with pytest.raises(ValueError, match=r"tokenizer\.model"):
        convert(source, tmp_path / "out")
    shutil.copy(shared / "tokenizers/llama3/tokenizer.model", source / "tokenizer.model")
    done = convert(source, tmp_path / "out")
    assert any("knows 128,256 tokens and the model 320" in note for note in done.source.notes)


def test_a_rope_factor_is_for_files_that_do_not_say_theirs_and_a_context_for_any(source, tmp_path):
    native = convert(source, tmp_path / "native").written.path
    for folder in (native, GOLDEN.parent / "hf" / "llama2"):
        with pytest.raises(ValueError, match=r"rope_factor=8 is for Meta's .*config\.json states"):
            convert(folder, tmp_path / "out", rope_factor=8)
    for i, folder in enumerate((source, native)):
        assert convert(folder, tmp_path / str(i), max_seq_len=7).source.config.max_seq_len == 7


def test_the_checkpoint_says_where_it_came_from(source, tmp_path):
    convert(source, tmp_path / "out", dtype="float32")
    info = json.loads((tmp_path / "out" / "checkpoint.json").read_text())
    assert info["source"]["path"] == str(source.resolve())
    assert info["source"]["format"] == "meta"
    assert [f["name"] for f in info["source"]["files"]] == [FIRST, SECOND]
    for file in info["source"]["files"]:
        content = (source / file["name"]).read_bytes()
        assert file["sha256"] == hashlib.sha256(content).hexdigest()
    assert info["dtype"] == "float32"


@pytest.mark.slow
def test_a_two_gigabyte_checkpoint_converts_in_below_1200_megabytes(tmp_path):
    """Two shards of bfloat16, as `llama-jax convert` does it, in a process of its own."""
    source = tmp_path / "source"
    source.mkdir()
    params = {"dim": 2048, "n_layers": 16, "n_heads": 32, "n_kv_heads": 8, "vocab_size": 32000}
    params |= {"multiple_of": 256, "ffn_dim_multiplier": 1.5, "norm_eps": 1e-5}
    (source / "params.json").write_text(json.dumps(params))
    config = llama_jax.Config.named("llama-3.2-1b").replace(
        vocab_size=32000, tie_embeddings=False, rope_theta=1e4, rope_scaling=None
    )
    noise = np.random.default_rng(0).standard_normal(1 << 26, dtype=np.float32).astype(BFLOAT16)
    for rank in (0, 1):
        state = {}
        for i, weight in enumerate(names_table(config)):
            embedding = weight.path[0] == "tok_embeddings"
            shape = list(weight.shape if embedding else weight.shape[::-1])
            start = 1000 * i
            if len(shape) == 2:
                shape[embedding or weight.path[-1] in ("wo", "w2")] //= 2
                start += rank
            state[weight.meta] = noise[start : start + math.prod(shape)].reshape(shape)
        torch_zip.save(source / f"consolidated.{rank:02}.pth", state)
    stored = sum(f.stat().st_size for f in source.glob("*.pth"))

    start = time.monotonic()
    command = [sys.executable, "-m", "llama_jax", "convert", source, tmp_path / "out"]
    done, peak = run_measured(command, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    seconds = time.monotonic() - start
    print(f"{stored / 1e9:.2f} GB in {seconds:.1f} s, {peak / 1e9:.2f} GB anonymous at the peak")
    assert stored > 2e9
    assert peak < 1.2e9


def test_all_below_a_new_directory_is_on_disk_before_it_has_its_name(tmp_path, monkeypatch):
    synced, real = [], os.fsync

    def fsync(descriptor):
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with whole_directory(tmp_path / "new") as partial:
        (partial / "a" / "b").mkdir(parents=True)
        for name in ("a/b/c", "a/d", "e"):
            (partial / name).write_text("x")
        (partial / "link").symlink_to("e")
    below = [name.rpartition("partial")[2] for name in synced if "partial" in name]
    assert {"/a/b/c", "/a/d", "/e", "/a/b", "/a", ""} <= set(below)
    assert below.index("/a/b/c") < below.index("/a/b") < below.index("/a") < below.index("")
    assert below[-1] == "", "the directory itself comes last"
