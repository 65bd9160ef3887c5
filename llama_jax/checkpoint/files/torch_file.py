"""torch's zip files without torch: a state dict as memory-mapped arrays."""

from __future__ import annotations

import io
import itertools
import math
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from llama_jax.checkpoint.files.messages import FETCH_AGAIN, LFS_POINTER, Refused, shorten
from llama_jax.checkpoint.files.regular import open_regular
from llama_jax.checkpoint.files.torch_names import Tensor
from llama_jax.checkpoint.files.torch_pickle import read_pickle

# Far above any model (405B: 0.2 MB each), far below what would hurt to parse.
_MAX_PICKLE_BYTES = 2 * 2**20
_MAX_DIRECTORY_BYTES = 8 * 2**20
_CHECKED_BYTES = 16 * 2**20


def read_state_dict(path: str | Path) -> dict[str, np.ndarray]:
    """The tensors that `torch.save` wrote to `path`, each a read-only view of the mapped file.

    Nothing is executed and no weight is read. Whatever is wrong with the bytes comes out as one
    ValueError that names the file; the bytes may be a stranger's.
    """
    with _BoundedReader(open_regular(path)) as file:
        try:
            return _read(file)
        except Refused as error:
            raise ValueError(f"{path}: {error}") from error
        except Exception as error:
            # Damaged bytes fail wherever they please, in zipfile, pickletools or NumPy.
            what = f"{type(error).__name__}: {shorten(error)}"
            raise ValueError(f"{path} is damaged ({what}); {FETCH_AGAIN}") from error


def is_torch_file(path: str | Path) -> bool:
    """Whether a file begins as the zip that `torch.save` writes."""
    with open_regular(path) as file:
        return file.read(4) == b"PK\x03\x04"


def check_sums(path: str | Path) -> None:
    """ValueError where a record's bytes are not those that `torch.save` summed up; reads all."""
    with _BoundedReader(open_regular(path)) as file:
        memory = np.memmap(file, dtype=np.uint8, mode="r")
        for info, record in _placed_records(file, memory):
            found = 0
            for start in range(0, len(record), _CHECKED_BYTES):
                found = zlib.crc32(record[start : start + _CHECKED_BYTES].data, found)
            # torch can be told not to compute the sum, and then writes 0.
            if info.CRC and found != info.CRC:
                raise ValueError(
                    f"{path}: its record {shorten(info.filename)} does not have the checksum it "
                    f"should, so a weight is damaged; {FETCH_AGAIN}"
                )


class _BoundedReader(io.BufferedReader):
    """A file that does not hand zipfile a whole disk as the archive's directory."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _MAX_DIRECTORY_BYTES:
            raise Refused(f"its zip directory claims {size:,} bytes; {FETCH_AGAIN}")
        return super().read(size)


def _read(file: io.BufferedReader) -> dict[str, np.ndarray]:
    _check_kind(file.read(64))
    memory = np.memmap(file, dtype=np.uint8, mode="r")
    records = _records(file, memory)
    prefix, pickled = _pickle_record(records)
    byteorder = bytes(records.get(f"{prefix}byteorder", np.empty(0, np.uint8))[:16])
    if byteorder not in (b"", b"little"):
        raise Refused(
            f"its byte order is {byteorder!r}, and only little is read; save it again on x86 or ARM"
        )
    state = read_pickle(pickled)
    if not isinstance(state, dict):
        raise Refused(f"it holds one {type(state).__name__}, not a state dict of named tensors")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise Refused(
                f"its entry {shorten(name)} is a {type(value).__name__}, not a tensor; "
                "save the state dict alone: torch.save(state_dict, file)"
            )
    return {name: _view(name, tensor, records, prefix) for name, tensor in state.items()}


_OTHER_KINDS = (
    LFS_POINTER,
    (b"<", "is a web page; the download was refused: sign in or ask for a new link, and try again"),
    (b"GGUF", "is a GGUF file, not Meta's format; get the consolidated.*.pth files"),
    (
        b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.",
        "has torch's format from before version 1.6; save it again with a newer torch: "
        "torch.save(torch.load(file, weights_only=True), file)",
    ),
    (b"\x80", "is a bare pickle, not what torch.save writes, and is not opened"),
)


def _check_kind(head: bytes) -> None:
    if not head:
        raise Refused(f"is empty; {FETCH_AGAIN}")
    if head.startswith(b"PK\x03\x04"):
        return
    if head[4:9] == b"\0\0\0\0{":  # the header's length, then the header
        raise Refused("is a safetensors file under another name; call it *.safetensors")
    for start, what in _OTHER_KINDS:
        if head.lstrip().startswith(start):
            raise Refused(what)
    raise Refused(f"is not a file that torch.save wrote; {FETCH_AGAIN}")


def _records(file: io.BufferedReader, memory: np.ndarray) -> dict[str, np.ndarray]:
    """The bytes of every record in the archive, by name: views of `memory`."""
    found: dict[str, np.ndarray] = {}
    for info, record in _placed_records(file, memory):
        if info.filename in found:
            raise Refused(f"it holds two records {shorten(info.filename)}; {FETCH_AGAIN}")
        found[info.filename] = record
        if info.filename.endswith("/data.pkl"):
            _check_pickle_record(info, record)
    return found


def _placed_records(
    file: io.BufferedReader, memory: np.ndarray
) -> Iterator[tuple[zipfile.ZipInfo, np.ndarray]]:
    """Every record and its bytes, which no other record reaches into."""
    try:
        infos = zipfile.ZipFile(file).infolist()
    except zipfile.BadZipFile as error:
        raise Refused(
            f"its end, the archive's directory, is missing or damaged; {FETCH_AGAIN}"
        ) from error
    begins = sorted(info.header_offset for info in infos)
    ends = dict(itertools.zip_longest(begins, begins[1:], fillvalue=len(memory)))
    for info in infos:
        name = shorten(info.filename)
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise Refused(f"its record {name} is compressed, which torch.save never does")
        if info.flag_bits & 1:
            raise Refused(f"its record {name} is encrypted, which torch.save never does")
        start = _payload_start(memory, info)
        if start + info.file_size > len(memory):
            raise Refused(f"its record {name} runs past the end of the file; {FETCH_AGAIN}")
        if start + info.file_size > ends[info.header_offset]:
            raise Refused(f"its record {name} runs into the next; {FETCH_AGAIN}")
        yield info, memory[start : start + info.file_size]


_LOCAL_HEADER = struct.Struct("<4s5H3I2H")
_SIZE_ELSEWHERE = (0, 0xFFFFFFFF)
"""What the local header says where the size stands behind the record, or in a zip64 field."""


def _payload_start(memory: np.ndarray, info: zipfile.ZipInfo) -> int:
    """Where a record's bytes begin: behind its local header, whose padding only it knows."""
    at = info.header_offset
    header = bytes(memory[at : at + _LOCAL_HEADER.size])
    magic, _, flags, method, _, _, _, packed, size, name_size, extra_size = _LOCAL_HEADER.unpack(
        header
    )
    start = at + _LOCAL_HEADER.size
    name = bytes(memory[start : start + name_size])
    agrees = (
        magic == b"PK\x03\x04"
        and method == info.compress_type
        and not flags & 1
        and name == info.orig_filename.encode("utf-8" if info.flag_bits & 0x800 else "cp437")
        and all(n == info.file_size or n in _SIZE_ELSEWHERE for n in (packed, size))
    )
    if not agrees:
        raise Refused(
            f"its record {shorten(info.filename)} disagrees with the archive's directory; "
            f"{FETCH_AGAIN}"
        )
    return start + name_size + extra_size


def _check_pickle_record(info: zipfile.ZipInfo, record: np.ndarray) -> None:
    if info.file_size > _MAX_PICKLE_BYTES:
        raise Refused(
            f"its data.pkl has {info.file_size:,} bytes and a state dict's stays below "
            f"{_MAX_PICKLE_BYTES:,}; save the tensors alone: torch.save(state_dict, file)"
        )
    # torch can be told not to compute the sum, and then writes 0.
    if info.CRC and zlib.crc32(bytes(record)) != info.CRC:
        raise Refused(f"its data.pkl does not have the checksum it should; {FETCH_AGAIN}")


def _pickle_record(records: dict[str, np.ndarray]) -> tuple[str, bytes]:
    """The folder inside the archive, whose name is anything, with its slash; and its data.pkl."""
    names = [name for name in records if name.endswith("/data.pkl")]
    if len(names) != 1:
        raise Refused(
            f"it is a zip with {len(names)} records */data.pkl where torch.save writes one; "
            "it is some other archive"
        )
    return names[0].removesuffix("data.pkl"), bytes(records[names[0]])


def _view(name: str, tensor: Tensor, records: dict[str, np.ndarray], prefix: str) -> np.ndarray:
    storage, shown = tensor.storage, shorten(name)
    record = records.get(f"{prefix}data/{storage.key}")
    if record is None:
        raise Refused(f"{shown} lies in record data/{shorten(storage.key)}, which is not there")
    itemsize = storage.dtype.itemsize
    if storage.numel * itemsize > len(record):
        raise Refused(
            f"{shown} needs {storage.numel * itemsize:,} bytes of a record that has "
            f"{len(record):,}; {FETCH_AGAIN}"
        )
    numel = math.prod(tensor.size)
    steps = zip(tensor.size, tensor.stride, strict=True)
    last = tensor.offset + sum((n - 1) * step for n, step in steps)
    # A stride of 0 could make petabytes of one number: no tensor is larger than its storage.
    if numel > storage.numel or (numel and last >= storage.numel):
        raise Refused(
            f"{shown} reaches outside its storage of {storage.numel:,} numbers; {FETCH_AGAIN}"
        )
    if numel == 0:
        return np.ndarray(tensor.size, storage.dtype, record[:0])
    strides = tuple(step * itemsize for step in tensor.stride)
    return np.ndarray(tensor.size, storage.dtype, record, tensor.offset * itemsize, strides)
