"""safetensors files: what the library wrote is read, and every broken header is named."""

import random
import tracemalloc

import helpers
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hf_folder import framed, header_of, mutated, write_safetensors

from llama_jax.checkpoint.files.safetensors_file import read_safetensors

GOLDEN = helpers.GOLDEN / "hf"
F32 = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "int64", "int8", "bool"])
def test_what_the_library_wrote_is_read(tmp_path, dtype):
    rng = np.random.default_rng(0)
    tensors = {
        "a": rng.normal(size=(3, 5)).astype(dtype),
        "scalar": np.array(2).astype(dtype),
        "empty": np.empty((0, 7), dtype),
        "b.c": rng.normal(size=(4,)).astype(dtype),
    }
    file = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(tensors, file, metadata={"format": "pt"})
    found = read_safetensors(file)
    assert found.keys() == tensors.keys()
    for name, array in found.items():
        assert (array.dtype, array.shape) == (tensors[name].dtype, tensors[name].shape)
        assert array.tobytes() == tensors[name].tobytes()
        assert not array.flags.writeable


def test_bfloat16_and_float8_are_views_of_their_own_dtypes(tmp_path):
    tensors = {
        "a": np.arange(6).astype(ml_dtypes.bfloat16),
        "b": np.arange(5).astype(ml_dtypes.float8_e4m3fn),
    }
    found = read_safetensors(write_safetensors(tmp_path / "x.safetensors", tensors))
    for name, array in found.items():
        assert array.dtype == tensors[name].dtype
        assert array.tobytes() == tensors[name].tobytes()


BROKEN = {
    "no bytes": (b"", "is empty"),
    "a few bytes": (b"\x10\0", "is not a safetensors file"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "a web page": (b"<!doctype html><html>", "web page"),
    "torch's": (b"PK\x03\x04" + bytes(60), r"call it \*\.bin"),
    "a long header": ((2**40).to_bytes(8, "little") + b"{", "claims 1,099,511,627,776 bytes"),
    "a cut header": (framed(b"{" + b" " * 90)[:50], "header of 91 bytes is cut off at 50"),
    "no JSON": (framed(b'{"a": '), "not JSON"),
    "no UTF-8": (framed(b'{"\xff": 1}'), "not JSON"),
    "deep JSON": (framed(b'{"a":' * 100_000), "not JSON"),
    "a long name": (framed({"." * 1025: {**F32}}, bytes(24)), "of 1,025 characters, and a name"),
    "a long number": (framed(b'{"a":' + b"9" * 5000 + b"}"), "not JSON"),
    "a name twice": (
        framed(b'{"w": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}, "w": {}}'),
        "names 'w' twice",
    ),
    "a key twice": (framed(b'{"w": {"dtype": "U8", "dtype": "I8"}}'), "names 'dtype' twice"),
    "no object": (framed({"w": 3}), "'w'"),
    "a key less": (framed({"w": {"dtype": "F32", "shape": [1]}}), "'w'.*data_offsets"),
    "a key more": (framed({"w": F32 | {"x": 1}}, bytes(24)), "'w'"),
    "a strange dtype": (framed({"w": F32 | {"dtype": "Q4"}}, bytes(24)), "'w' has the dtype 'Q4'"),
    "a dtype of another type": (framed({"w": F32 | {"dtype": 4}}, bytes(24)), "'w'"),
    "a negative axis": (framed({"w": F32 | {"shape": [-2, -3]}}, bytes(24)), "'w'.*impossible"),
    "an axis of a float": (framed({"w": F32 | {"shape": [2.0, 3]}}, bytes(24)), "'w'.*impossible"),
    "an axis of a bool": (framed({"w": F32 | {"shape": [True, 6]}}, bytes(24)), "'w'.*impossible"),
    "a huge axis": (framed({"w": F32 | {"shape": [0, 2**62]}}, bytes(24)), "'w'.*impossible"),
    "many axes": (framed({"w": F32 | {"shape": [1] * 40}}, bytes(24)), "'w'.*impossible"),
    "a wrong size": (framed({"w": F32 | {"shape": [2, 4]}}, bytes(24)), "'w' .*32 bytes.* 24"),
    "past the end": (framed({"w": F32}, bytes(20)), "'w' lies at .*outside the 20 bytes"),
    "backwards": (framed({"w": F32 | {"data_offsets": [24, 0]}}, bytes(24)), "'w' lies at"),
    "before it": (framed({"w": F32 | {"data_offsets": [-24, 0]}}, bytes(24)), "'w' lies at"),
    "overlaps": (framed({"v": F32, "w": F32}, bytes(24)), "'w' overlaps 'v'"),
    "a hole": (
        framed({"v": F32, "w": F32 | {"data_offsets": [28, 52]}}, bytes(52)),
        "4 bytes before 'w'",
    ),
    "a hole before": (framed({"w": F32 | {"data_offsets": [4, 28]}}, bytes(28)), "before 'w'"),
    "bytes behind": (framed({"w": F32}, bytes(28)), "4 bytes before 'its end'"),
}


@pytest.mark.parametrize(("content", "message"), BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_named_with_what_is_wrong(tmp_path, content, message):
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_safetensors(file)
    assert str(file) in str(caught.value)


def test_a_header_of_hollow_entries_takes_bounded_memory(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(framed(b'{"a":[' + b"[]," * 1_300_000 + b"[]]}"))
    tracemalloc.start()
    with pytest.raises(ValueError, match="'a'"):
        read_safetensors(file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 150 * 2**20


@pytest.mark.parametrize(
    "rounds", [400, pytest.param(5000, marks=pytest.mark.slow)], ids=["some", "many"]
)
def test_whatever_the_bytes_are_the_reader_reads_them_or_raises_value_error(tmp_path, rounds):
    rng = random.Random(0)
    whole = (GOLDEN / "llama2" / "model-00005-of-00005.safetensors").read_bytes()
    header_end = 8 + int.from_bytes(whole[:8], "little")
    file, refused = tmp_path / "model.safetensors", []
    for _ in range(rounds):
        head = mutated(whole[:header_end], rng)
        # The length is mended half of the time: else few headers would come to be read.
        if rng.random() < 0.5:
            head = (max(0, len(head) - 8)).to_bytes(8, "little") + head[8:]
        file.write_bytes(head + whole[header_end:])
        try:
            for array in read_safetensors(file).values():
                array.tobytes()
        except ValueError as error:
            refused.append(str(error))
    assert all(str(file) in message for message in refused)
    assert len(refused) > rounds / 2


def test_the_headers_of_real_files_are_what_the_tests_write(tmp_path):
    for file in GOLDEN.glob("*/*.safetensors"):
        found = read_safetensors(file)
        ours = write_safetensors(tmp_path / "x", {n: np.array(a) for n, a in found.items()})
        assert header_of(found).keys() == found.keys()
        for name, array in read_safetensors(ours).items():
            assert array.tobytes() == found[name].tobytes()
