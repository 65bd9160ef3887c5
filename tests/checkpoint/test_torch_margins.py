"""Bytes around the records of torch's files, which no sum covers: a changed one is noticed."""

import random
import struct
import zipfile
import zlib

import numpy as np
import pytest
import torch_zip

from llama_jax.checkpoint.files.torch_archive import check_sums
from llama_jax.checkpoint.files.torch_file import read_state_dict


def as_torch_writes(records, wide=()):
    """A zip file as torch.save makes it over miniz; sizes of some records behind them are wide."""
    body, directory = b"", b""
    for name, data in records.items():
        at, named, crc = len(body), name.encode(), zlib.crc32(data)
        padding = -(at + 30 + len(named) + 4 + len(data)) % 64
        extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding
        body += b"PK\3\4" + struct.pack(
            "<5H3I2H", 0, 2056, 0, 0, 0, 0, 0, 0, len(named), len(extra)
        )
        body += named + extra + data
        form = "<4sI2Q" if name in wide else "<4s3I"
        body += struct.pack(form, b"PK\7\x08", crc, len(data), len(data))
        said = (0, 0, 2056, 0, 0, 0, crc, len(data), len(data), len(named), *[0] * 5, at)
        directory += b"PK\1\2" + struct.pack("<6H3I5H2I", *said) + named
    start, size, count = len(body), len(directory), len(records)
    said = (0, 0, count, count, size, start)
    end = b"PK\6\6" + struct.pack("<Q2H2I4Q", 44, 0x031E, 45, *said)
    end += b"PK\6\7" + struct.pack("<IQI", 0, start + size, 1)
    return body + directory + end + b"PK\5\6" + struct.pack("<4H2IH", *said, 0)


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """The records of a small state dict, by name."""
    file = tmp_path_factory.mktemp("margins") / "a.pth"
    torch_zip.save(file, {"a": np.arange(6, dtype=np.float32), "b": np.ones(2, np.float16)})
    with zipfile.ZipFile(file) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def accepted(file):
    """Whether a conversion would take the file."""
    try:
        read_state_dict(file)
        check_sums(file)
    except ValueError:
        return False
    return True


def test_no_bit_of_torchs_own_file_may_flip(records, tmp_path):
    file, sound = tmp_path / "a.pth", as_torch_writes(records)
    file.write_bytes(sound)
    assert accepted(file)
    rng, taken = random.Random(0), []
    for at in range(len(sound)):
        bit = rng.randrange(8)
        changed = bytearray(sound)
        changed[at] ^= 1 << bit
        file.write_bytes(changed)
        if accepted(file):
            taken.append((at, bit))
    assert taken == []


def test_sizes_behind_a_record_may_be_wide_as_beyond_4_gib(records, tmp_path):
    file, names = tmp_path / "a.pth", list(records)
    file.write_bytes(as_torch_writes({**records, "a/empty": b""}, wide=(*names[1:], "a/empty")))
    assert accepted(file)


@pytest.mark.parametrize("what", ["between", "behind the directory", "at the end"])
def test_bytes_that_are_of_no_record_are_refused_in_torchs_file(what, records, tmp_path):
    file, sound = tmp_path / "a.pth", as_torch_writes(records)
    second = sound.index(b"PK\3\4", 4)
    places = {
        "between": second,
        "behind the directory": sound.index(b"PK\6\6"),
        "at the end": len(sound),
    }
    at = places[what]
    file.write_bytes(sound[:at] + b"\0" * 16 + sound[at:])
    assert not accepted(file)


def test_another_writers_file_is_asked_for_its_sums_alone(records, tmp_path):
    file = tmp_path / "a.pth"
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in records.items():
            said = zipfile.ZipInfo(name)
            said.external_attr = 0o600 << 16 if name.endswith("0") else 0o644 << 16
            archive.writestr(said, data)
        archive.comment = b"of somebody's tool"
    assert accepted(file)
