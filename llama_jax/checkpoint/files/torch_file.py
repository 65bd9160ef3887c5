"""torch's zip files without torch: a state dict as memory-mapped arrays."""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from pathlib import Path

import numpy as np

from llama_jax.checkpoint.files.messages import (
    FETCH_AGAIN,
    LFS_POINTER,
    Refused,
    check_tensor_name,
    shorten,
)
from llama_jax.checkpoint.files.regular import open_regular
from llama_jax.checkpoint.files.torch_archive import BoundedReader, placed_records
from llama_jax.checkpoint.files.torch_names import Tensor
from llama_jax.checkpoint.files.torch_pickle import read_pickle

# Far above any model (405B: 0.2 MB each), far below what would hurt to parse.
_MAX_PICKLE_BYTES = 2 * 2**20


def read_state_dict(path: str | Path) -> dict[str, np.ndarray]:
    """The tensors that `torch.save` wrote to `path`, each a read-only view of the mapped file.

    Nothing is executed and no weight is read. Whatever is wrong with the bytes comes out as one
    ValueError that names the file; the bytes may be a stranger's.
    """
    with BoundedReader(open_regular(path)) as file:
        try:
            return _read(file)
        except Refused as error:
            raise ValueError(f"{path}: {error}") from error
        except Exception as error:
            # Damaged bytes fail wherever they please, in zipfile, pickletools or NumPy.
            what = f"{type(error).__name__}: {shorten(error)}"
            raise ValueError(f"{path} is damaged ({what}); {FETCH_AGAIN}") from error


def is_torch_file(path: str | Path) -> bool:
    """Whether a file begins as the zip that `torch.save` writes, or as a pickle.

    torch wrote pickles before version 1.6: `read_state_dict` says what to do about one. A header's
    length may begin as a pickle does, and the header follows it.
    """
    with open_regular(path) as file:
        head = file.read(9)
    return head[:4] == b"PK\x03\x04" or (head[:1] == b"\x80" and head[8:] != b"{")


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
        check_tensor_name(name)
    views = {name: _view(name, tensor, records, prefix) for name, tensor in state.items()}
    _check_together(views, len(memory))
    return views


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
    for info, record in placed_records(file, memory):
        if info.filename in found:
            raise Refused(f"it holds two records {shorten(info.filename)}; {FETCH_AGAIN}")
        found[info.filename] = record
        if info.filename.endswith("/data.pkl"):
            _check_pickle_record(info, record)
    return found


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


def _check_together(views: dict[str, np.ndarray], size: int) -> None:
    """Refuses tensors that are far more than the file: any number may be views of one storage.

    Two may: an output layer may share its storage with the embedding.
    """
    needed = sum(view.nbytes for view in views.values())
    if needed > 2 * size:
        raise Refused(
            f"its tensors are {needed:,} bytes together and the file has {size:,}: they share "
            "storages as no model's do; save each as a tensor of its own: tensor.clone()"
        )


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
    if last < storage.numel < numel:
        raise Refused(
            f"{shown} repeats {storage.numel:,} numbers to be {numel:,}, as no model's does; save "
            "it as a tensor of its own: tensor.clone()"
        )
    if numel > storage.numel or (numel and last >= storage.numel):
        raise Refused(
            f"{shown} reaches outside its storage of {storage.numel:,} numbers; {FETCH_AGAIN}"
        )
    if numel == 0:
        return np.ndarray(tensor.size, storage.dtype, record[:0])
    strides = tuple(step * itemsize for step in tensor.stride)
    return np.ndarray(tensor.size, storage.dtype, record, tensor.offset * itemsize, strides)
