"""bench: a model in every contestant's format, and the folder where they are kept."""

import importlib.util
import json
import shutil
import struct
import sys
from collections import namedtuple

import jax
import numpy as np
import pytest

import llama_jax
from bench import models
from bench.entrants import CONTESTANTS
from bench.gguf_file import write_gguf
from bench.llama2c import Llama2c
from bench.llama2c_file import ids_of, spelled, write_llama2c
from bench.shapes import SHAPES
from llama_jax.checkpoint.export import export
from llama_jax.checkpoint.published import parameter_count
from llama_jax.checkpoint.reading import open_checkpoint


@pytest.fixture(scope="module")
def native(tmp_path_factory):
    """A tiny native checkpoint, tied, with two query heads a key head."""
    path = tmp_path_factory.mktemp("bench") / "native"
    llama_jax.save(llama_jax.init_params(jax.random.key(0), SHAPES["tiny"]), path)
    return path


def test_ids_survive_llama2cs_spelling():
    ids = [2, 3, 255, 31999, 127999]
    assert ids_of(spelled(ids)) == ids
    assert {len(character.encode()) for character in spelled(ids)} == {1, 4}


def test_llama2c_reads_its_weights_by_kind(native, tmp_path):
    write_llama2c(native, tmp_path / "llama2c")
    c, source = SHAPES["tiny"], open_checkpoint(native)
    written = (tmp_path / "llama2c" / "model.bin").read_bytes()
    assert struct.unpack("<7i", written[:28]) == (64, 128, 2, 4, 2, 256, 256)
    numbers = np.frombuffer(written[28:], np.float32)
    assert len(numbers) == parameter_count(c) + c.max_seq_len * c.head_dim
    second_wq = c.vocab_size * c.dim + c.n_layers * c.dim + c.dim * c.dim
    found = numbers[second_wq : second_wq + c.dim * c.dim].reshape(c.dim, c.dim)
    np.testing.assert_array_equal(found, source.tensors["layers_1", "attention", "wq"][...].T)


def test_llama2c_is_asked_for_ids_and_read_as_it_prints(tmp_path):
    """Its program is stood in for by one that prints its prompt, and then counts on from it."""
    program = tmp_path / "run"
    program.write_text(
        f"#!{sys.executable}\n"
        "import sys\n"
        "given = dict(zip(sys.argv[2::2], sys.argv[3::2]))\n"
        "new = int(given['-n']) - len(given['-i']) - 1\n"
        "for piece in given['-i'] + ''.join(chr(0x10000 + 10 + i) for i in range(new)):\n"
        "    sys.stdout.write(piece)\n"
        "    sys.stdout.flush()\n"
        "print()\n"
    )
    program.chmod(0o755)
    run = Llama2c(tmp_path, str(program), 1).decode([[1, 2, 7, 8]], 5)
    assert run.tokens == [[10, 11, 12, 13, 14]]
    assert 0 <= run.followed <= 4
    with pytest.raises(ValueError, match="begins a prompt"):
        Llama2c(tmp_path, str(program), 1).decode([[5, 6, 7]], 5)


@pytest.mark.skipif(importlib.util.find_spec("gguf") is None, reason="gguf comes with `bench`")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gguf_holds_hugging_faces_rows_permuted_back(native, tmp_path, dtype):
    """As llama.cpp's converter does it: [heads, 2, half, in] to [heads, half, 2, in]."""
    import gguf
    from safetensors.numpy import load_file

    cast = tmp_path / "cast"
    llama_jax.save(llama_jax.load(native, dtype=dtype), cast)
    write_gguf(cast, tmp_path / "model.gguf")
    export(cast, tmp_path / "hf", format="hf")
    theirs = load_file(tmp_path / "hf" / "model.safetensors")
    reader, c = gguf.GGUFReader(tmp_path / "model.gguf"), SHAPES["tiny"]
    held = {tensor.name: tensor for tensor in reader.tensors}
    assert reader.get_field("llama.attention.head_count_kv").contents() == c.n_kv_heads
    assert reader.get_field("tokenizer.ggml.model").contents() == "no_vocab"
    for ggufs, hf, heads in (("attn_q", "q_proj", c.n_heads), ("attn_k", "k_proj", c.n_kv_heads)):
        rows = theirs[f"model.layers.1.self_attn.{hf}.weight"]
        adjacent = rows.reshape(heads, 2, -1, c.dim).swapaxes(1, 2).reshape(rows.shape)
        found = held[f"blk.1.{ggufs}.weight"].data.view(rows.dtype)
        np.testing.assert_array_equal(found, adjacent)
    assert held["output_norm.weight"].data.dtype == np.float32
    assert "output.weight" not in held  # tied
    assert len(held) == len(theirs)


def test_a_model_is_written_once_and_only_in_the_formats_asked_for(tmp_path):
    models.write("tiny", "float32", tmp_path, ["native", "hf"], None)
    before = (tmp_path / "native" / "checkpoint.json").stat().st_mtime_ns
    models.write("tiny", "float32", tmp_path, ["llama2c"], None)
    assert {path.name for path in tmp_path.iterdir()} == {"native", "hf", "llama2c"}
    assert (tmp_path / "native" / "checkpoint.json").stat().st_mtime_ns == before
    assert {entry.format for entry in CONTESTANTS.values()} == {"native", "hf", "gguf", "llama2c"}


@pytest.fixture
def kept(tmp_path, native, monkeypatch):
    """A folder of models whose writer copies one, and may be told to fail."""
    wanted = []

    def write_apart(request):
        wanted.append(request["formats"])
        shutil.copytree(native, f"{request['folder']}/native", dirs_exist_ok=True)

    monkeypatch.setattr(models, "write_apart", write_apart)
    return tmp_path, wanted


def prepare(work):
    return models.prepared("tiny", None, "float32", {"native"}, work)


def test_a_model_is_written_again_when_what_it_is_made_from_changes(kept, monkeypatch):
    work, wanted = kept
    assert prepare(work).config == SHAPES["tiny"]
    prepare(work)
    assert len(wanted) == 1
    monkeypatch.setattr(models, "VERSION", models.VERSION + 1)
    prepare(work)
    prepare(work)
    assert len(wanted) == 2


def test_a_folder_whose_mark_names_no_version_is_of_the_first(kept):
    work, wanted = kept
    mark = prepare(work).folder / "origin.json"
    fields = json.loads(mark.read_text())
    mark.write_text(json.dumps({name: fields[name] for name in ("config", "seed")}))
    prepare(work)
    assert len(wanted) == 1


def test_a_folder_of_somebody_elses_is_not_emptied(kept):
    work, _ = kept
    folder = work / "tiny-float32"
    for name in ("native", "hf", "partial-gguf", ".native.partial", "thesis"):
        (folder / name).mkdir(parents=True)
    with pytest.raises(ValueError, match="holds thesis, which no run of this wrote"):
        prepare(work)
    with pytest.raises(ValueError, match="thesis"):
        models.unwritten_bytes("tiny", None, "float32", {"native"}, work)
    (folder / "thesis").rmdir()
    prepare(work)
    assert {path.name for path in folder.iterdir()} == {"native", "origin.json"}


def test_what_is_still_to_be_written_must_have_room(kept, monkeypatch):
    work, _ = kept
    one = 4 * parameter_count(SHAPES["tiny"])
    formats = {"native", "hf", "gguf"}
    assert models.unwritten_bytes("tiny", None, "float32", formats, work) == 3 * one
    prepare(work)
    assert models.unwritten_bytes("tiny", None, "float32", formats, work) == 2 * one
    assert models.unwritten_bytes("tiny", None, "float32", {"native"}, work) == 0
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(models.shutil, "disk_usage", lambda path: usage(1000))
    models.check_space(work, 1000)
    with pytest.raises(ValueError, match=r"about 1,001 bytes, and .* has 1,000 free; make room"):
        models.check_space(work, 1001)


def test_a_writer_that_fails_is_one_line(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(models, "environment", lambda *given: {"JAX_PLATFORMS": "nowhere"})
    with pytest.raises(
        RuntimeError, match=r"tiny as native could not be written to .*: \S+[^\n]*$"
    ):
        prepare(tmp_path)
    assert "bench" in capfd.readouterr().err
