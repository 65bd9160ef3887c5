"""torch's files are read without torch, and nothing a stranger wrote into one is run."""

import gc
import itertools
import os
import pickle
import pickletools
import random
import re
import resource
import struct
import zipfile
from pathlib import Path

import helpers
import ml_dtypes
import numpy as np
import pytest
import torch_zip
from torch_zip import ORDERED_DICT, Call, Global, Parameter, Storages, View

from llama_jax.checkpoint.files import torch_archive
from llama_jax.checkpoint.files.torch_file import read_state_dict

GOLDEN = helpers.GOLDEN / "meta" / "llama2-gqa" / "consolidated.00.pth"
DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64, np.int64, np.bool_]


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_comes_back_bitwise(tmp_path, dtype):
    value = np.arange(12).reshape(3, 4).astype(dtype)
    torch_zip.save(tmp_path / "a.pth", {"a": value, "scalar": value[1:2, 1].reshape(())})
    state = read_state_dict(tmp_path / "a.pth")
    assert state["a"].dtype == value.dtype
    assert state["a"].tobytes() == value.tobytes()
    assert state["scalar"].shape == ()


def test_offset_size_and_stride_are_honoured_over_a_shared_storage(tmp_path):
    flat = np.arange(40, dtype=np.float32)
    views = {
        "transposed": View(flat, 0, (5, 8), (1, 5)),
        "offset": View(flat, 7, (3, 4), (4, 1)),
        "strided": View(flat, 1, (13,), (3,)),
        "to_the_last": View(flat, 39, (1, 1), (99, 99)),
        "empty": View(flat, 40, (0, 3), (3, 1)),
    }
    torch_zip.save(tmp_path / "a.pth", {**views, "parameter": Parameter(views["offset"])})
    with zipfile.ZipFile(tmp_path / "a.pth") as archive:
        assert sum("/data/" in name for name in archive.namelist()) == 1
    state = read_state_dict(tmp_path / "a.pth")
    for name, view in {**views, "parameter": views["offset"]}.items():
        strides = [4 * step for step in view.stride]
        expected = np.lib.stride_tricks.as_strided(flat[view.offset :], view.size, strides)
        np.testing.assert_array_equal(state[name], expected)


def test_tensors_over_one_storage_are_together_no_more_than_twice_the_file(tmp_path):
    flat = np.ones(2**16, np.float32)
    views = {str(n): View(flat, 0, (2**16,), (1,)) for n in range(8)}
    torch_zip.save(tmp_path / "tied.pth", {n: views[n] for n in "01"})
    tied = read_state_dict(tmp_path / "tied.pth")
    np.testing.assert_array_equal(tied["0"], tied["1"])
    torch_zip.save(tmp_path / "a.pth", views)
    with pytest.raises(ValueError, match=r"a\.pth: its tensors are 2,097,152 bytes together and"):
        read_state_dict(tmp_path / "a.pth")


def test_records_are_counted_before_any_is_read(tmp_path, monkeypatch):
    torch_zip.save(tmp_path / "a.pth", {"a": np.ones(3, np.float32)})
    count = len(zipfile.ZipFile(tmp_path / "a.pth").namelist())
    monkeypatch.setattr(torch_archive, "MAX_RECORDS", count)
    read_state_dict(tmp_path / "a.pth")
    monkeypatch.setattr(torch_archive, "MAX_RECORDS", count - 1)
    monkeypatch.setattr(torch_archive, "payload_start", None)
    with pytest.raises(ValueError, match=f"it holds {count} records and .* at most {count - 1}"):
        read_state_dict(tmp_path / "a.pth")


def test_tensors_are_views_of_the_file_that_cannot_be_written(tmp_path):
    torch_zip.save(tmp_path / "a.pth", {"a": np.ones(3, np.float32), "b": np.ones((0, 2))})
    for array in read_state_dict(tmp_path / "a.pth").values():
        assert not array.flags.owndata
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 2


def test_a_modules_state_dict_loses_only_its_metadata(tmp_path):
    torch_zip.save(tmp_path / "a.pth", {"w": np.ones(2, np.float16)}, metadata=True, prefix="x.00")
    assert list(read_state_dict(tmp_path / "a.pth")) == ["w"]


def test_a_file_that_torch_wrote_is_read():
    state = read_state_dict(GOLDEN)
    assert state["layers.0.attention.wk.weight"].shape == (8, 64)
    assert {array.dtype for array in state.values()} == {np.dtype(ml_dtypes.bfloat16)}
    assert all(np.isfinite(array.astype(np.float32)).all() for array in state.values())


HOSTILE = {
    "os.system": Global("os", "system"),
    "posix.system": Global("posix", "system"),
    "builtins.eval": Global("builtins", "eval"),
    "builtins.getattr": Global("builtins", "getattr"),
    "__builtin__.exec": Global("__builtin__", "exec"),
    "torch.load": Global("torch", "load"),
    "torch.hub.load": Global("torch.hub", "load"),
    "torch.jit.load": Global("torch.jit", "load"),
    "numpy.load": Global("numpy", "load"),
    "torch.serialization.os.system": Global("torch.serialization", "os.system"),
    "collections.namedtuple": Global("collections", "namedtuple"),
    "collections.OrderedDict.__init__": Global("collections", "OrderedDict.__init__"),
    "llama_jax.checkpoint.files.torch_file.read_state_dict": Global(
        "llama_jax.checkpoint.files.torch_file", "read_state_dict"
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_not_admitted_is_refused_and_nothing_runs(tmp_path, name):
    marker = tmp_path / "ran"
    code = f"open({str(marker)!r}, 'w')" if "eval" in name or "exec" in name else f"touch {marker}"
    value = {"w": Call(HOSTILE[name], (code,)), "v": Storages().tensor(np.ones(1, np.float32))}
    path = tmp_path / "a.pth"
    torch_zip.write(path, torch_zip.pickled(torch_zip.dump(value)), [np.ones(1, np.float32)])
    with pytest.raises(ValueError, match=f"{path}: its pickle names '{re.escape(name)}'"):
        read_state_dict(path)
    assert not marker.exists()


def refusal(path: Path, data_pkl: bytes, *arrays: np.ndarray) -> str:
    torch_zip.write(path, data_pkl, list(arrays))
    with pytest.raises(ValueError, match=re.escape(str(path))) as caught:
        read_state_dict(path)
    return str(caught.value)


SNEAKY = {
    "an attribute set on an admitted function": (
        torch_zip.dump(torch_zip.REBUILD_TENSOR) + b"}(X\x01\x00\x00\x00aK\x01ub",
        "changes a value that is not a dict",
    ),
    "an admitted class called with arguments": (
        torch_zip.dump(Call(ORDERED_DICT, ([("a", 1)],))),
        "damaged",
    ),
    "a storage type called": (
        torch_zip.dump(Call(Global("torch", "FloatStorage"), (2**40,))),
        "not a function",
    ),
    "INST": (b"(ios\nsystem\n", "names 'os.system'"),
    "OBJ": (b"(cos\nsystem\no", "names 'os.system'"),
    "STACK_GLOBAL": (b"\x8c\x02os\x8c\x06system\x93", "names 'os.system'"),
    "EXT1": (b"\x82\x01", "uses EXT1"),
    "NEWOBJ": (b"ccollections\nOrderedDict\n)\x81", "uses NEWOBJ"),
    "a text persistent id": (b"Pstorage\n", "uses PERSID"),
    "a memo slot of gigabytes": (b"K\x01r\xff\xff\xff\x7f", "holds one int"),
    "a string longer than the file": (b"X\xff\xff\xff\x7fabc", "damaged"),
    "a number of many bytes": (b"\x8b\xff\xff\xff\x7fabc", "damaged"),
    "an empty stack": (b"R", "damaged"),
    "no such memo": (b"h\x07", "damaged"),
    "a frame": (b"\x95\xff\xff\xff\xff\xff\xff\xff\x7f", "uses FRAME"),
}


@pytest.mark.parametrize("name", SNEAKY)
def test_a_pickle_that_goes_beyond_a_state_dict_is_refused(tmp_path, name):
    opcodes, message = SNEAKY[name]
    assert message in refusal(tmp_path / "a.pth", torch_zip.pickled(opcodes))


def test_a_key_that_takes_forever_to_hash_is_refused(tmp_path):
    nested = b")" + b"".join(b"q%ch%c\x86" % (n, n) for n in range(200))
    message = refusal(tmp_path / "a.pth", torch_zip.pickled(b"}" + nested + b"K\x01s"))
    assert "a dict key that is a tuple" in message


def test_axes_without_measure_are_refused_before_they_are_looked_at(tmp_path):
    # Ones that torch would not say: whoever looks at them says something else.
    changes = {"size": ("x",) * 1000, "stride": ("x",) * 1000}
    tensor = Storages().tensor(np.ones((2, 2), np.float32), **changes)
    data = torch_zip.pickled(torch_zip.dump({"w": tensor}))
    assert "a tensor of 1,000 axes" in refusal(tmp_path / "a.pth", data, np.ones(4))


def test_deep_nesting_is_refused_without_recursion(tmp_path):
    assert "holds one tuple" in refusal(
        tmp_path / "a.pth", torch_zip.pickled(b")" + b"\x85" * 100000)
    )
    gc.collect()


@pytest.mark.parametrize(
    ("opcodes", "message"),
    [
        (b"(" * 65, "its pickle is over 64 levels deep"),
        (b"N" * 2**19, "its pickle has over 524,288 opcodes"),
    ],
)
def test_a_pickle_that_would_take_long_is_refused(tmp_path, opcodes, message):
    assert message in refusal(tmp_path / "a.pth", torch_zip.pickled(opcodes))


def test_a_tensor_has_a_name_of_at_most_1024_characters(tmp_path):
    for length in (1024, 1025):
        torch_zip.save(tmp_path / "a.pth", {"." * length: np.ones(2, np.float32)})
        if length == 1024:
            assert [*read_state_dict(tmp_path / "a.pth")] == ["." * length]
            continue
        with pytest.raises(ValueError, match=r"of 1,025 characters, and a name has at most 1,024"):
            read_state_dict(tmp_path / "a.pth")


OUT_OF_BOUNDS = {
    "offset": {"offset": 7},
    "far offset": {"offset": 2**62},
    "size": {"size": (5, 2), "stride": (2, 1)},
    "stride": {"stride": (7, 1)},
    "far stride": {"stride": (2**62, 2**62)},
    "numbers out of one": {"size": (10**9, 10**9), "stride": (0, 0)},
    "numel": {"numel": 9},
    "far numel": {"numel": 2**62},
    "no such record": {"key": "7"},
    "a record outside": {"key": "../version"},
}


@pytest.mark.parametrize("name", OUT_OF_BOUNDS)
def test_a_tensor_outside_its_record_is_refused_by_name(tmp_path, name):
    tensor = Storages().tensor(np.ones((2, 4), np.float32)[:, :2].copy(), **OUT_OF_BOUNDS[name])
    data = torch_zip.pickled(torch_zip.dump({"the.tensor": tensor}))
    assert "the.tensor" in refusal(tmp_path / "a.pth", data, np.ones(4, np.float32))


@pytest.mark.parametrize(
    ("size", "stride"), [((3, 4), (0, 1)), ((9,), (0,)), ((2, 2, 2), (2, 1, 0))]
)
def test_a_tensor_that_repeats_its_storage_is_told_the_way_out(tmp_path, size, stride):
    tensor = Storages().tensor(np.ones((2, 2), np.float32), size=size, stride=stride)
    data = torch_zip.pickled(torch_zip.dump({"the.tensor": tensor}))
    message = refusal(tmp_path / "a.pth", data, np.ones(4, np.float32))
    assert "'the.tensor' repeats 4 numbers" in message
    assert "tensor.clone()" in message


@pytest.mark.parametrize(
    "changes",
    [
        {"offset": -1},
        {"size": (-1, 2)},
        {"stride": (-2, 1)},
        {"size": (2,)},
        {"size": (2.0, 2)},
        {"size": None},
        {"numel": -4},
        {"numel": True},
        {"key": 0},
        {"storage": ORDERED_DICT},
        {"storage": Global("torch", "FloatStorage"), "key": ["0"]},
        {"size": (1,) * 20, "stride": (1,) * 20},
    ],
)
def test_a_malformed_tensor_is_refused(tmp_path, changes):
    tensor = Storages().tensor(np.ones((2, 2), np.float32), **changes)
    refusal(tmp_path / "a.pth", torch_zip.pickled(torch_zip.dump({"w": tensor})), np.ones(4))


@pytest.mark.parametrize("value", [None, 3, [1], {"model": {}}, {"w": 1}, {"w": {"v": 1}}, {1: 2}])
def test_what_is_no_state_dict_is_said_to_be_none(tmp_path, value):
    message = refusal(tmp_path / "a.pth", torch_zip.pickled(torch_zip.dump(value)))
    assert "not a state dict" in message or "not a tensor" in message


OTHER_FILES = {
    b"": "is empty",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n": "git lfs pull",
    b"<!DOCTYPE html><html>403</html>": "is a web page",
    b"\n <html>": "is a web page",
    b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.": "before version 1.6",
    b"\x80\x04\x95\x00": "a bare pickle",
    struct.pack("<Q", 60) + b'{"w":{"dtype":"F16"}}': "safetensors",
    b"GGUF\x03\x00\x00\x00": "GGUF",
    b"\x00" * 100: "not a file that torch.save wrote",
    b"PK\x03\x04 and no more": "missing or damaged",
}


@pytest.mark.parametrize("content", OTHER_FILES)
def test_another_kind_of_file_is_called_what_it_is(tmp_path, content):
    path = tmp_path / "consolidated.00.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{path}: .*{OTHER_FILES[content]}"):
        read_state_dict(path)


def test_a_file_that_is_not_there_is_not_called_damaged(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_state_dict(tmp_path / "a.pth")


def test_a_zip_bomb_and_other_archives_are_refused(tmp_path):
    path, zeros = tmp_path / "a.pth", np.zeros(2**20, np.float32)
    tensor = Storages().tensor(zeros)
    data = torch_zip.pickled(torch_zip.dump({"w": tensor}))
    torch_zip.write(path, data, [zeros], compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="is compressed"):
        read_state_dict(path)
    torch_zip.write(path, data, [zeros], byteorder=b"big")
    with pytest.raises(ValueError, match="byte order is b'big'"):
        read_state_dict(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "")
    with pytest.raises(ValueError, match=r"0 records \*/data.pkl"):
        read_state_dict(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", data)
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a/data.pkl", data)
    with pytest.raises(ValueError, match="two records"):
        read_state_dict(path)
    assert "2,097,152" in refusal(path, data + bytes(2**21))


def test_a_directory_that_disagrees_with_its_records_is_refused(tmp_path):
    path = tmp_path / "a.pth"
    torch_zip.save(path, {"w": np.ones(4, np.float32)})
    whole = path.read_bytes()
    assert len(read_state_dict(path)) == 1
    for old, new, message in [
        (b"archive/data/0", b"archive/data/1", "disagrees"),  # the first is the local header's
        (b"\x80\x02", b"\x80\x03", "checksum"),
        (b"PK\x03\x04\x14\x00\x00\x00", b"PK\x03\x04\x14\x00\x01\x00", "disagrees"),
        (b"PK\x01\x02\x14\x03\x14\x00\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01\x00", "encrypted"),
    ]:
        assert old in whole
        path.write_bytes(whole.replace(old, new, 1))
        with pytest.raises(ValueError, match=message):
            read_state_dict(path)


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Damage as disks, networks and people do it, most of it where the structure is."""
    changed = bytearray(data)
    structural = [m.start() for m in re.finditer(rb"PK|archive|torch|consolidated", data)]
    for _ in range(rng.choice((1, 1, 2, 8))):
        near = rng.choice(structural) + rng.randrange(-8, 60)
        at = near % len(changed) if rng.random() < 0.8 else rng.randrange(len(changed))
        match rng.randrange(5):
            case 0:
                changed[at] ^= 1 << rng.randrange(8)
            case 1:
                changed[at : at + 4] = rng.choice((b"\xff" * 4, bytes(4), rng.randbytes(4)))
            case 2:
                changed[at:at] = rng.randbytes(rng.randrange(1, 40))
            case 3:
                del changed[at : at + rng.randrange(1, 40)]
            case 4 if rng.random() < 0.2:
                del changed[max(at, 1) :]
            case _:
                changed[at] = rng.randrange(256)
    return bytes(changed)


def random_pickle(rng: random.Random, valid: bytes) -> bytes:
    """A real pickle with its opcodes shuffled, dropped, repeated, and others put in."""
    starts = [position for _, _, position in pickletools.genops(valid)]
    pieces = [valid[a:b] for a, b in itertools.pairwise(starts)]
    for _ in range(rng.choice((1, 2, 4, 30))):
        at, other = rng.randrange(1, len(pieces)), rng.randrange(1, len(pieces))
        strange = rng.choice([code.code.encode("latin-1") for code in pickletools.opcodes])
        pieces[at] = rng.choice((pieces[other], b"", pieces[at] * 2, strange + rng.randbytes(3)))
    return b"".join(pieces) + b"."


def survives(path: Path) -> bool:
    """Whether the file opens; a tensor that was handed out must then be readable to its end."""
    try:
        state = read_state_dict(path)
    except ValueError as error:
        assert str(path) in str(error)  # noqa: PT017
        assert len(str(error)) < 1000  # noqa: PT017
        return False
    for array in state.values():
        array.tobytes()
    return True


def fuzz(tmp_path: Path, rounds: int) -> None:
    rng = random.Random(0)
    path = tmp_path / "fuzzed.pth"
    torch_zip.save(path, {f"w{n}": np.ones((n, 2), np.float16) for n in range(4)}, metadata=True)
    small, real = path.read_bytes(), GOLDEN.read_bytes()
    storages = Storages()
    tensors = {f"w{n}": storages.tensor(np.ones((4, n), np.float32)) for n in range(3)}
    valid = torch_zip.pickled(torch_zip.dump(tensors))
    opened = 0
    for turn in range(rounds):
        if turn % 3 == 2:
            torch_zip.write(path, random_pickle(rng, valid), storages.arrays)
        else:
            path.write_bytes(mutate((small, real)[turn % 3], rng))
        opened += survives(path)
    assert 0 < opened < rounds / 2


def test_damaged_files_end_in_a_value_error_and_little_memory(tmp_path):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    fuzz(tmp_path, 600)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024  # KiB


@pytest.mark.slow
def test_damaged_files_end_in_a_value_error_for_thousands_of_rounds(tmp_path):
    fuzz(tmp_path, 6000)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_a_call_is_refused_by_name_in_every_protocol(tmp_path, protocol):
    class Call:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    pickled = pickle.dumps({"tok_embeddings.weight": Call()}, protocol)
    torch_zip.write(tmp_path / "x.pth", pickled)
    with pytest.raises(ValueError, match=r"(os|posix|nt)\.system.*nothing in it was run"):
        read_state_dict(tmp_path / "x.pth")
    assert not (tmp_path / "ran").exists()
