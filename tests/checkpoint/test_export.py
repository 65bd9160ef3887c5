"""`export`: out of JAX into Meta's and Hugging Face's files, and back, bit for bit."""

import json
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch_zip
from helpers import (
    GOLDEN_META,
    ROOT,
    config_of,
    files_no_larger_than,
    in_a_process,
    run,
    two_shards,
)
from memory import AnonymousPeak
from meta_folder import assert_holds, cut, weights_of

from llama_jax.checkpoint import export_tensor, native
from llama_jax.checkpoint.convert import convert
from llama_jax.checkpoint.export import export
from llama_jax.checkpoint.files import torch_writer
from llama_jax.checkpoint.files.torch_file import read_state_dict
from llama_jax.checkpoint.huggingface import export as hf_export
from llama_jax.checkpoint.meta.export import meta_params
from llama_jax.checkpoint.meta.params import hidden_dim, read_params
from llama_jax.checkpoint.names import names_table
from llama_jax.checkpoint.reading import open_checkpoint
from llama_jax.config import (
    Config,
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    YarnScaling,
    published,
)

BF16 = np.dtype(ml_dtypes.bfloat16)
META = ["llama1", "llama2-gqa", "llama3", "llama3.1"]
EMBEDDING = "tok_embeddings.weight"


def assert_one_model(path, other, *, dtype=None):
    a, b = open_checkpoint(path), open_checkpoint(other)
    assert a.config == b.config
    assert list(a.tensors) == list(b.tensors)
    for weight in a.tensors:
        one, two = a.tensors[weight], b.tensors[weight]
        expected = one[...].astype(dtype or one.dtype)
        assert two.dtype == expected.dtype
        assert two[...].tobytes() == expected.tobytes(), weight


def entries(folder):
    return sorted(entry.name for entry in folder.iterdir())


def random_native(folder, config, dtype=BF16):
    rng = np.random.default_rng(0)
    tensors = {w.path: rng.normal(size=w.shape).astype(dtype) for w in names_table(config)}
    native.write(folder, config, tensors)
    return folder


@pytest.fixture(params=["large blocks", "small blocks"])
def blocks(request, monkeypatch):
    """Tensors smaller than a block, and tensors of several with a shorter last one."""
    if request.param == "small blocks":
        monkeypatch.setattr(export_tensor, "BLOCK_BYTES", 1)
        monkeypatch.setattr(export_tensor, "CHUNK", 16)


# Round trips


@pytest.mark.parametrize("name", META)
def test_meta_to_native_to_meta_is_bitwise_in_1_2_and_4_shards(tmp_path, name, blocks):
    convert(GOLDEN_META / name, tmp_path / "native")
    heads = open_checkpoint(GOLDEN_META / name).config.n_heads
    for shards in (n for n in (1, 2, 4) if heads % n == 0):
        for layout in ("llama2", "llama3"):
            dst = tmp_path / f"{layout}-{shards}"
            done = export(tmp_path / "native", dst, format="meta", shards=shards, layout=layout)
            assert done.files == tuple(f"consolidated.{n:02}.pth" for n in range(shards))
            assert_one_model(GOLDEN_META / name, dst)


@pytest.mark.parametrize("name", META)
def test_metas_own_files_come_out_as_they_went_in(tmp_path, name):
    files = sorted((GOLDEN_META / name).glob("*.pth"))
    done = export(GOLDEN_META / name, tmp_path / "out", format="meta", shards=len(files))
    assert done.notes == ()
    for file in files:
        before, after = read_state_dict(file), read_state_dict(tmp_path / "out" / file.name)
        assert after.keys() == {key for key in before if key != "rope.freqs"}
        for key, array in after.items():
            assert array.dtype == before[key].dtype
            assert array.shape == before[key].shape
            assert array.tobytes() == before[key].tobytes()
    # LLaMA 1 and 2 leave vocab_size to the tokenizer; multiple_of has several right answers.
    before, after = (
        json.loads((d / "params.json").read_text()) for d in (GOLDEN_META / name, done.path)
    )
    free = {"vocab_size", "multiple_of", "ffn_dim_multiplier", "n_kv_heads"}
    assert {k: v for k, v in after.items() if k not in free} == {
        k: v for k, v in before.items() if k not in free
    }


@pytest.mark.parametrize("name", META)
@pytest.mark.parametrize("shards", [None, 1, 5])
def test_meta_to_hf_to_native_is_meta_to_native(tmp_path, name, shards, blocks):
    convert(GOLDEN_META / name, tmp_path / "straight")
    export(GOLDEN_META / name, tmp_path / "hf", format="hf", shards=shards)
    convert(tmp_path / "hf", tmp_path / "round")
    assert_one_model(tmp_path / "straight", tmp_path / "round")


@pytest.mark.parametrize(
    "scaling",
    [
        None,
        LinearScaling(4.0),
        Llama3Scaling(32.0, 1.0, 4.0, 8192),
        YarnScaling(8.0, 32.0, 1.0, False, 1.25, 4096),
        DynamicScaling(2.0, 512),
    ],
)
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("biases", [False, True], ids=["plain", "biases"])
def test_native_to_hf_to_native_is_bitwise_for_every_kind_of_model(
    tmp_path, scaling, tied, biases, blocks
):
    config = config_of(
        head_dim=24,  # not dim / n_heads
        rope_scaling=scaling,
        tie_embeddings=tied,
        attention_bias=biases,
        mlp_bias=biases,
        max_seq_len=512,
    )
    first = random_native(tmp_path / "native", config)
    done = export(first, tmp_path / "hf", format="hf", shards=2)
    assert_one_model(first, tmp_path / "hf")
    assert done.bytes == sum(t.nbytes for t in open_checkpoint(first).tensors.values())


def test_hugging_faces_folders_come_out_as_they_went_in(tmp_path, shared):
    for folder in sorted((shared / "reference/hf").iterdir()):
        convert(folder, tmp_path / folder.name / "native")
        export(tmp_path / folder.name / "native", tmp_path / folder.name / "hf", format="hf")
        assert_one_model(folder, tmp_path / folder.name / "hf")


@pytest.mark.parametrize("format", ["hf", "meta"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_every_dtype_is_written(tmp_path, format, dtype):
    first = random_native(tmp_path / "native", config_of(n_kv_heads=4), np.float32)
    done = export(first, tmp_path / "out", format=format, dtype=dtype)
    assert done.dtypes == (dtype,)
    a, b = open_checkpoint(first), open_checkpoint(tmp_path / "out")
    for path in a.tensors:
        expected = a.tensors[path][...].astype(b.tensors[path].dtype)
        assert b.tensors[path][...].tobytes() == expected.tobytes()


@pytest.mark.parametrize("format", ["hf", "meta"])
def test_tied_embeddings_are_stored_as_each_format_does(tmp_path, format):
    config = config_of(tie_embeddings=True, max_seq_len=4096)
    first = random_native(tmp_path / "native", config)
    export(first, tmp_path / "out", format=format)
    assert_one_model(first, tmp_path / "out")
    if format == "meta":
        state = read_state_dict(tmp_path / "out" / "consolidated.00.pth")
        assert (state["output.weight"] == state[EMBEDDING]).all()
    else:
        header = (tmp_path / "out" / "model.safetensors").read_bytes()[:20_000]
        assert b"lm_head" not in header


def test_more_shards_than_key_value_heads_repeat_them(tmp_path):
    config = config_of(n_heads=8, head_dim=8, n_kv_heads=2, max_seq_len=4096, vocab_size=128)
    first = random_native(tmp_path / "native", config)
    export(first, tmp_path / "out", format="meta", shards=8, layout="llama3")
    assert_one_model(first, tmp_path / "out")
    keys = [
        read_state_dict(file)["layers.0.attention.wk.weight"]
        for file in sorted((tmp_path / "out").glob("*.pth"))
    ]
    assert [key.shape for key in keys] == [(8, 64)] * 8
    assert all((keys[rank] == keys[rank - rank % 4]).all() for rank in range(8))


def test_the_embedding_is_cut_as_the_family_does(tmp_path):
    for name, theta, shape in (("two", 10000.0, (128, 32)), ("three", 500000.0, (64, 64))):
        first = random_native(tmp_path / name, config_of(rope_theta=theta, vocab_size=128))
        export(first, tmp_path / f"{name}-meta", format="meta", shards=2)
        state = read_state_dict(tmp_path / f"{name}-meta" / "consolidated.01.pth")
        assert state[EMBEDDING].shape == shape
        assert state["output.weight"].shape == (64, 64)


def test_a_tokenizer_comes_along(tmp_path, shared):
    model = shared / "models/stories260K-meta"
    for format in ("hf", "meta"):
        export(model, tmp_path / format, format=format)
        copy = tmp_path / format / "tokenizer.model"
        assert copy.read_bytes() == (model / "tokenizer.model").read_bytes()
    said = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert (said["bos_token_id"], said["eos_token_id"]) == (1, 2)
    generation = json.loads((tmp_path / "hf" / "generation_config.json").read_text())
    assert generation == {"bos_token_id": 1, "eos_token_id": 2}
    kind = json.loads((tmp_path / "hf" / "tokenizer_config.json").read_text())
    assert kind["tokenizer_class"] == "LlamaTokenizer"


def test_a_hugging_face_tokenizer_keeps_its_files(tmp_path, shared):
    model = shared / "models/tinystories656K-hf"
    convert(model, tmp_path / "native")
    export(tmp_path / "native", tmp_path / "hf", format="hf")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / "hf" / name).read_bytes() == (model / name).read_bytes()
    assert "huggingface_config.json" not in entries(tmp_path / "hf")


# params.json


@pytest.mark.parametrize("name", published())
def test_every_published_models_width_is_made_by_metas_rule(tmp_path, name):
    config = Config.named(name)
    params = meta_params(config, "llama3")
    (tmp_path / "params.json").write_text(json.dumps(params))
    assert read_params(tmp_path / "params.json").config.hidden_dim == config.hidden_dim
    assert "max_seq_len" not in params  # Meta's code gives it twice, and fails


def test_metas_own_pairs_are_written_where_they_fit():
    for name, pair in {
        "llama-7b": (256, None),
        "llama-2-70b": (4096, 1.3),
        "llama-3-8b": (1024, 1.3),
        "llama-3.1-405b": (4096, 1.2),
        "llama-3.2-1b": (256, 1.5),
        "llama-3.2-3b": (256, None),
    }.items():
        params = meta_params(Config.named(name), "llama2")
        assert (params["multiple_of"], params.get("ffn_dim_multiplier")) == pair


def test_any_width_is_expressible():
    rng = np.random.default_rng(0)
    for half, hidden in [(32, 1), (32, 96), (2048, 11007), *rng.integers(4, 30000, (200, 2))]:
        dim = 2 * half
        config = config_of(dim=int(dim), n_heads=1, n_kv_heads=1, hidden_dim=int(hidden))
        params = meta_params(config, "llama2")
        pair = params["multiple_of"], params.get("ffn_dim_multiplier", 1.0)
        assert hidden_dim(int(dim), *pair) == hidden


def test_older_models_get_only_the_keys_that_metas_older_code_knows():
    assert meta_params(Config.named("llama-7b"), "llama2").keys() == {
        *("dim", "n_layers", "n_heads", "vocab_size", "multiple_of", "norm_eps")
    }


@pytest.mark.parametrize(
    ("sizes", "told"),
    [
        ({"dim": 2048, "n_layers": 16, "factor": 32.0}, ["Meta's own code uses 8"]),
        ({"dim": 2048, "n_layers": 16, "factor": 8.0}, ["convert --rope-factor 8`"]),
        (
            {"dim": 64, "n_layers": 2, "factor": 32.0},
            ["own code uses 8", "convert --rope-factor 32`"],
        ),
        ({"dim": 64, "n_layers": 2, "factor": 8.0}, []),
        ({"dim": 64, "n_layers": 2, "factor": 8.0, "reach": 9000}, ["convert --max-seq-len 9000`"]),
    ],
)
def test_what_params_json_cannot_say_is_told(sizes, told):
    from llama_jax.checkpoint.meta.export import meta_notes

    config = config_of(
        dim=sizes["dim"],
        n_layers=sizes["n_layers"],
        rope_scaling=Llama3Scaling(sizes["factor"], 1.0, 4.0, 8192),
        max_seq_len=sizes.get("reach", 131072),
    )
    notes = meta_notes(config)
    assert len(notes) == len(told)
    for note, words in zip(notes, told, strict=True):
        assert words in note


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head_dim": 24}, r"head_dim=24 is not dim / n_heads = 64 / 4.*format hf"),
        ({"attention_bias": True}, "has biases.*format hf"),
        ({"mlp_bias": True}, "has biases.*format hf"),
        ({"rope_scaling": LinearScaling(2.0)}, "rope_scaling=LinearScaling.*format hf"),
        ({"rope_scaling": Llama3Scaling(8.0, 1.0, 4.0, 4096)}, "rope_scaling=.*format hf"),
    ],
)
def test_what_metas_model_cannot_do_is_refused(tmp_path, change, message):
    first = random_native(tmp_path / "native", config_of(**change))
    with pytest.raises(ValueError, match=message):
        export(first, tmp_path / "out", format="meta")
    assert entries(tmp_path) == ["native"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "onnx"}, "format='onnx' is unknown; use one of hf, meta, gguf"),
        ({"format": "hf", "layout": "llama3"}, "layout='llama3' is of Meta's files"),
        ({"format": "meta", "layout": "llama4"}, "layout='llama4' is unknown"),
        ({"format": "meta", "shards": 3}, "shards=3 does not divide n_heads=4"),
        ({"format": "meta", "shards": 0}, "shards=0 must be at least 1"),
        ({"format": "meta", "shards": 4}, "shards=4 does not divide vocab_size=130"),
        ({"format": "hf", "shards": 22}, "shards=22 files cannot be made of 21 tensors"),
        ({"format": "hf", "dtype": "int8"}, "int8"),
    ],
)
def test_a_wrong_wish_is_refused_before_anything_is_written(tmp_path, options, message):
    first = random_native(tmp_path / "native", config_of())
    with pytest.raises(ValueError, match=message):
        export(first, tmp_path / "out", **options)
    assert entries(tmp_path) == ["native"]


def test_key_value_heads_are_not_cut():
    from llama_jax.checkpoint.meta.export import meta_files

    config = config_of(n_heads=6, n_kv_heads=3, dim=96, head_dim=16, vocab_size=132)
    with pytest.raises(ValueError, match="shards=2 neither divides n_kv_heads=3 nor"):
        meta_files(config, {}, shards=2, layout="llama3", dtype=None)


# Files


def test_tensors_fill_files_up_to_the_limit(tmp_path, monkeypatch):
    first = random_native(tmp_path / "native", config_of())
    monkeypatch.setattr(hf_export, "FILE_BYTES", 30_000)
    done = export(first, tmp_path / "hf", format="hf")
    assert len(done.files) > 3
    sizes = [(tmp_path / "hf" / file).stat().st_size for file in done.files]
    assert max(sizes) < 32_000
    index = json.loads((tmp_path / "hf" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == done.bytes
    assert set(index["weight_map"].values()) == set(done.files)
    assert done.files[0] == f"model-00001-of-{len(done.files):05}.safetensors"
    assert_one_model(first, tmp_path / "hf")


@pytest.mark.parametrize("shards", [1, 2, 5, 20, 21])
def test_any_number_of_files_is_made_none_of_them_empty(tmp_path, shards):
    first = random_native(tmp_path / "native", config_of())
    done = export(first, tmp_path / "hf", format="hf", shards=shards)
    assert len(done.files) == shards
    assert_one_model(first, tmp_path / "hf")


def test_safetensors_own_reader_agrees(tmp_path):
    from safetensors import safe_open

    export(GOLDEN_META / "llama2-gqa", tmp_path / "hf", format="hf")
    with safe_open(tmp_path / "hf" / "model.safetensors", "numpy") as file:
        assert file.metadata() == {"format": "pt"}
        assert len(file.keys()) == len(open_checkpoint(GOLDEN_META / "llama2-gqa").tensors)


def test_records_are_aligned_and_sums_are_right(tmp_path):
    done = export(GOLDEN_META / "llama1", tmp_path / "out", format="meta")
    file = done.path / "consolidated.00.pth"
    with zipfile.ZipFile(file) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
    assert names[0] == "consolidated.00/data.pkl"
    assert {"consolidated.00/version", "consolidated.00/byteorder"} < set(names)
    for array in read_state_dict(file).values():
        assert array.ctypes.data % 64 == 0  # and the map begins at a page


def test_equal_weights_are_equal_files(tmp_path):
    for name in ("a", "b"):
        export(GOLDEN_META / "llama1", tmp_path / name, format="meta")
    one, two = ((tmp_path / name / "consolidated.00.pth").read_bytes() for name in ("a", "b"))
    assert one == two


@pytest.mark.parametrize("limit", [0, 100, 5000, 100_000])
def test_zip64_begins_where_32_bits_end(tmp_path, monkeypatch, limit):
    """The limit is lowered: records beyond 4 GiB are the slow test's."""
    export(GOLDEN_META / "llama1", tmp_path / "plain", format="meta")
    monkeypatch.setattr(torch_writer, "LIMIT", limit)
    export(GOLDEN_META / "llama1", tmp_path / "wide", format="meta")
    with zipfile.ZipFile(tmp_path / "wide" / "consolidated.00.pth") as archive:
        assert archive.testzip() is None
    assert_one_model(tmp_path / "plain", tmp_path / "wide")


def test_the_writer_and_the_tests_own_writer_are_read_alike(tmp_path):
    config = open_checkpoint(GOLDEN_META / "llama3").config
    weights = weights_of(config, BF16)
    (tmp_path / "theirs").mkdir()
    for rank, state in enumerate(cut(weights, 2)):
        torch_zip.save(tmp_path / "theirs" / f"consolidated.{rank:02}.pth", state)
    (tmp_path / "theirs" / "params.json").write_text(json.dumps(meta_params(config, "llama3")))
    export(tmp_path / "theirs", tmp_path / "ours", format="meta", shards=4)
    assert_holds(open_checkpoint(tmp_path / "ours"), weights)


# Hostile destinations, and what is not finite


def test_a_strangers_directory_is_left_alone(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match="out is "):
            export(GOLDEN_META / "llama1", tmp_path / "out", format="hf", overwrite=overwrite)
    assert entries(tmp_path / "out") == ["thesis.tex"]
    assert entries(tmp_path) == ["out"]


def test_an_export_is_replaced_when_asked_unless_somebody_added_to_it(tmp_path):
    export(GOLDEN_META / "llama1", tmp_path / "out", format="hf")
    with pytest.raises(FileExistsError, match="is there already"):
        export(GOLDEN_META / "llama3", tmp_path / "out", format="meta")
    export(GOLDEN_META / "llama3", tmp_path / "out", format="meta", overwrite=True)
    assert_one_model(GOLDEN_META / "llama3", tmp_path / "out")
    assert "config.json" not in entries(tmp_path / "out")
    (tmp_path / "out" / "writing.lock").touch()  # killed when all was whole
    export(GOLDEN_META / "llama3", tmp_path / "out", format="meta", overwrite=True)
    (tmp_path / "out" / "results.csv").write_text("mine")
    with pytest.raises(FileExistsError, match=r"out holds results\.csv, which .*not overwritten"):
        export(GOLDEN_META / "llama1", tmp_path / "out", format="hf", overwrite=True)
    (tmp_path / "out" / "results.csv").unlink()
    (tmp_path / "out" / "export.json").write_text("[]")
    with pytest.raises(FileExistsError, match="not overwritten"):
        export(GOLDEN_META / "llama1", tmp_path / "out", format="hf", overwrite=True)


def test_a_checkpoint_is_no_export_and_stays(tmp_path):
    convert(GOLDEN_META / "llama1", tmp_path / "native")
    with pytest.raises(FileExistsError, match="not overwritten"):
        export(tmp_path / "native", tmp_path / "native", format="hf", overwrite=True)
    assert native.is_native(tmp_path / "native")


def test_an_export_onto_itself_reads_before_it_replaces(tmp_path):
    export(GOLDEN_META / "llama2-gqa", tmp_path / "out", format="meta", shards=2)
    export(tmp_path / "out", tmp_path / "out", format="hf", overwrite=True)
    assert_one_model(GOLDEN_META / "llama2-gqa", tmp_path / "out")


class Stop(Exception):
    pass


@pytest.mark.parametrize("format", ["hf", "meta"])
def test_a_failure_halfway_leaves_nothing(tmp_path, format):
    told = []

    def stop(done, total):
        told.append((done, total))
        if done > total / 2:
            raise Stop

    with pytest.raises(Stop):
        export(GOLDEN_META / "llama1", tmp_path / "out", format=format, progress=stop)
    assert entries(tmp_path) == []
    assert told == sorted(told)


def test_a_kill_halfway_leaves_nothing_that_loads_and_running_again_repairs_it(tmp_path):
    code = (
        "import os, signal, sys; from llama_jax.checkpoint.export import export\n"
        "def kill(done, total):\n"
        "    if done > total / 2: os.kill(os.getpid(), signal.SIGKILL)\n"
        "export(sys.argv[1], sys.argv[2], format='hf', progress=kill)"
    )
    command = [sys.executable, "-c", code, str(GOLDEN_META / "llama1"), str(tmp_path / "out")]
    killed = subprocess.run(command, cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert entries(tmp_path) == [".out.partial"]
    export(GOLDEN_META / "llama1", tmp_path / "out", format="hf")
    assert entries(tmp_path) == ["out"]
    assert "writing.lock" not in entries(tmp_path / "out")
    assert_one_model(GOLDEN_META / "llama1", tmp_path / "out")


def test_a_full_disk_is_refused_beforehand(tmp_path, monkeypatch):
    usage = type("Usage", (), {"total": 2000, "free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(OSError, match=r"needs 266.9 kB .* has 1.0 kB free; make room"):
        export(GOLDEN_META / "llama1", tmp_path / "out", format="hf")
    assert entries(tmp_path) == []


def test_a_disk_that_fills_up_meanwhile_is_named_and_left_clean(tmp_path):
    named = pytest.raises(OSError, match=r"cannot write the checkpoint .*out: .*too large")
    with files_no_larger_than(20_000), named:
        export(GOLDEN_META / "llama1", tmp_path / "out", format="meta")
    assert entries(tmp_path) == []


def test_values_that_a_cast_makes_infinite_are_counted(tmp_path):
    config = config_of(max_seq_len=4096)
    tensors = {w.path: np.zeros(w.shape, np.float32) for w in names_table(config)}
    tensors["tok_embeddings", "weight"][3, 4:8] = 1e5, -7e4, np.inf, 65504
    native.write(tmp_path / "native", config, tensors)
    done = export(tmp_path / "native", tmp_path / "out", format="meta", dtype="float16")
    assert done.warnings == (
        "tok_embeddings.weight: 1 values are not finite (NaN or infinity)",
        "tok_embeddings.weight: 2 values overflow float16 and became infinite; "
        "bfloat16 and float32 reach further",
    )


# The command


@pytest.mark.parametrize("format", ["hf", "meta"])
def test_the_command_writes_and_says_what_it_wrote(tmp_path, format):
    result = run("export", GOLDEN_META / "llama2-gqa", tmp_path / "out", "--format", format)
    assert result.exit_code == 0, result.output
    for shown in ("none of Meta's", "dtype  ", "in 1 file in", str(tmp_path / "out")):
        assert shown in result.stdout
    assert_one_model(GOLDEN_META / "llama2-gqa", tmp_path / "out")


def test_the_command_passes_its_options_on(tmp_path):
    options = ("--format", "meta", "--shards", 2, "--layout", "llama3", "--dtype", "float16")
    assert run("export", GOLDEN_META / "llama1", tmp_path / "out", *options).exit_code == 0
    state = read_state_dict(tmp_path / "out" / "consolidated.01.pth")
    assert state[EMBEDDING].shape == (128, 64)
    assert state[EMBEDDING].dtype == np.float16
    refused = run("export", GOLDEN_META / "llama3", tmp_path / "out", *options)
    assert refused.exit_code == 1
    assert "is there already" in refused.stderr
    assert (
        run("export", GOLDEN_META / "llama3", tmp_path / "out", *options, "--overwrite").exit_code
        == 0
    )


@pytest.mark.parametrize("name", ["export", "verify"])
def test_a_command_runs_from_a_clone(name, tmp_path):
    arguments = {
        "export": [GOLDEN_META / "llama1", tmp_path / "out", "--format", "hf"],
        "verify": [GOLDEN_META / "llama1", GOLDEN_META / "llama1"],
    }[name]
    command = [sys.executable, "-m", "llama_jax", name, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# Memory


def measure(config, folder, format):
    """Bytes, seconds and memory of a random checkpoint out of native files, and back in."""
    folder = Path(folder)
    native.write(folder / "native", config, two_shards(folder, config))
    for file in folder.glob("*.bin"):
        file.unlink()
    with AnonymousPeak() as out:
        done = export(folder / "native", folder / format, format=format)
    start = time.monotonic()
    with AnonymousPeak() as back:
        convert(folder / format, folder / "back")
    return {
        "format": format,
        "bytes": done.bytes,
        "out_seconds": round(done.seconds, 1),
        "out_peak": out.peak,
        "out_added": out.added,
        "back_seconds": round(time.monotonic() - start, 1),
        "back_peak": back.peak,
    }


@pytest.mark.parametrize("format", ["hf", "meta"])
def test_memory_is_a_few_blocks(tmp_path, format):
    config = config_of(dim=1024, n_heads=8, hidden_dim=4096, n_layers=4, vocab_size=32000)
    found = measure(config, tmp_path, format)
    assert found["bytes"] > 200e6
    assert found["out_added"] < 250e6, found


@pytest.mark.slow
@pytest.mark.parametrize("format", ["hf"])
def test_four_gigabytes_go_out_and_come_back_in_below_1500_megabytes(tmp_path, format):
    """In a process of its own, which counts everything it has."""
    config = config_of(
        dim=3072,
        n_layers=16,
        n_heads=24,
        n_kv_heads=8,
        hidden_dim=8192,
        vocab_size=96000,
        max_seq_len=4096,
    )
    found = in_a_process(measure, config, tmp_path, format)
    print(found)
    assert found["bytes"] > 4e9
    assert found["out_peak"] < 1.5e9, found
    assert found["back_peak"] < 1.5e9, found
    start = time.monotonic()
    result = run("verify", tmp_path / "native", tmp_path / "back")
    print(f"verified in {time.monotonic() - start:.1f} s")
    assert result.exit_code == 0, result.output
    for folder in tmp_path.iterdir():  # pytest would keep the 13 GB of three runs
        shutil.rmtree(folder)
