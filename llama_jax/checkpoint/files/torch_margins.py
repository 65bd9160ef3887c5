"""What lies around the records of a zip file of torch's: every byte of it follows from the records.

No sum covers these bytes. Where an archive has torch's padding, they are held against what torch
writes (PyTorch's `caffe2/serialize/inline_container.cc` over miniz), so a changed bit shows. Of
another writer's archive nothing is asked here.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Sequence

import numpy as np

from llama_jax.checkpoint.files.messages import FETCH_AGAIN, Refused, shorten

_PADDING, _WIDE = 0x4246, 1
"""Two kinds of extra fields: "FB", which aligns a record, and zip's own of 64-bit numbers."""
_SUM_BEHIND = 8
_LOCAL, _ENTRY = 30, 46
_END, _WIDE_END = struct.Struct("<4s4H2IH"), struct.Struct("<4sQ2H2I4Q4sIQI")
_VERSIONS = (0x031E, 45), (45, 45)
"""What an archive's end says: the version that wrote it (miniz's, or this project's), and the
version that is needed to read it."""
Records = Sequence[tuple[zipfile.ZipInfo, np.ndarray]]
"""What the directory says of each record, and its bytes."""


def check_margins(memory: np.ndarray, records: Records) -> None:
    """Refused where an archive of torch's has other bytes around its records than they ask for."""
    placed = sorted(records, key=lambda record: record[0].header_offset)
    extras = [_extra(memory, info) for info, _ in placed]
    if not any(extra[-1:] == b"Z" for extra in extras):
        return
    at = 0
    for (info, record), extra in zip(placed, extras, strict=True):
        sizes = bytes(memory[at + 18 : at + 26])
        _check(info.header_offset == at and sizes[:4] == sizes[4:], info)
        _check(_fits(extra, info), info)
        at += _LOCAL + _name_size(memory, at) + len(extra) + len(record)
        at += _descriptor(memory, at, info)
    start, at = at, _check_directory(memory, at, [info for info, _ in records])
    if not _is_end(bytes(memory[at : at + 256]), start, at, len(records)):
        raise Refused(f"its end is not as torch.save writes it; {FETCH_AGAIN}")


def _check(holds: bool, info: zipfile.ZipInfo) -> None:
    if not holds:
        raise Refused(
            f"what lies around its record {shorten(info.filename)} is not as torch.save writes "
            f"it; {FETCH_AGAIN}"
        )


def _name_size(memory: np.ndarray, at: int) -> int:
    return int.from_bytes(bytes(memory[at + 26 : at + 28]), "little")


def _extra(memory: np.ndarray, info: zipfile.ZipInfo) -> bytes:
    """The extra fields in front of a record."""
    at = info.header_offset
    size = int.from_bytes(bytes(memory[at + 28 : at + 30]), "little")
    start = at + _LOCAL + _name_size(memory, at)
    return bytes(memory[start : start + size])


def _fits(extra: bytes, info: zipfile.ZipInfo) -> bool:
    """Whether extra fields are of the two kinds, padding is all Z, and numbers are the record's."""
    while extra:
        if len(extra) < 4:
            return False
        kind, size = struct.unpack_from("<2H", extra)
        content, extra = extra[4 : 4 + size], extra[4 + size :]
        if len(content) != size:
            return False
        if kind == _PADDING:
            if content.strip(b"Z"):
                return False
        elif kind != _WIDE or size % 8:
            return False
        else:
            numbers = struct.unpack(f"<{size // 8}Q", content)
            if not set(numbers) <= {0, info.file_size, info.header_offset}:
                return False
    return True


def _descriptor(memory: np.ndarray, at: int, info: zipfile.ZipInfo) -> int:
    """The bytes of what stands behind a record: its sum and its size once more, or nothing.

    The sizes have 64 bits where the record lies beyond 4 GiB, too, so what follows decides.
    """
    if not info.flag_bits & _SUM_BEHIND:
        return 0
    found = bytes(memory[at : at + 28])
    for form, most in (("<4s3I", 0xFFFFFFFF), ("<4sI2Q", 0xFFFFFFFFFFFFFFFF)):
        if info.file_size <= most:
            said = struct.pack(form, b"PK\7\x08", info.CRC, info.file_size, info.file_size)
            if found.startswith((said + b"PK\3\4", said + b"PK\1\2")):
                return len(said)
    _check(False, info)
    return 0


def _check_directory(memory: np.ndarray, at: int, infos: Sequence[zipfile.ZipInfo]) -> int:
    """Where the directory ends; Refused where its entries are not alike in what they all share."""
    first = bytes(memory[at : at + 8])
    for info in infos:
        entry = bytes(memory[at : at + _ENTRY])
        _check(len(entry) == _ENTRY, info)
        name, extra, comment = struct.unpack_from("<3H", entry, 28)
        local = bytes(memory[info.header_offset + 4 : info.header_offset + 6])
        start = at + _ENTRY + name
        _check(entry[:8] == first and entry[6:8] == local, info)
        _check(not comment and not any(entry[34:42]), info)  # no disks, no attributes
        _check(_fits(bytes(memory[start : start + extra]), info), info)
        at = start + extra
    return at


def _is_end(found: bytes, start: int, end: int, count: int) -> bool:
    """Whether what follows the directory, up to the file's end, says how long it is and where."""
    size, wide = end - start, found.startswith(b"PK\6\6")
    if len(found) != _END.size + wide * _WIDE_END.size:
        return False
    if wide:
        versions = struct.unpack_from("<2H", found, 12)
        where = (0, 0, count, count, size, start, b"PK\6\7", 0, end, 1)
        if versions not in _VERSIONS or _WIDE_END.unpack_from(found) != (
            *(b"PK\6\6", 44, *versions),
            *where,
        ):
            return False
    expected = (b"PK\5\6", 0, 0, count, count, size, start, 0)
    narrow = (*(0, 0, 0), *(0xFFFF, 0xFFFF), *(0xFFFFFFFF, 0xFFFFFFFF), 0)
    said = _END.unpack(found[-_END.size :])
    return all(
        one == right or (wide and one == instead and instead)
        for one, right, instead in zip(said, expected, narrow, strict=True)
    )
