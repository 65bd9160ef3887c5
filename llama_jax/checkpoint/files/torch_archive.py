"""torch's zip files: where the bytes of each record lie, and whether they have their sums."""

from __future__ import annotations

import io
import itertools
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np

from llama_jax.checkpoint.files.mapped import check_whole
from llama_jax.checkpoint.files.messages import FETCH_AGAIN, Refused, shorten
from llama_jax.checkpoint.files.regular import open_regular
from llama_jax.checkpoint.files.torch_margins import check_margins

_MAX_DIRECTORY_BYTES = 8 * 2**20
MAX_RECORDS = 2**16
_CHECKED_BYTES = 16 * 2**20


class BoundedReader(io.BufferedReader):
    """A file that does not hand zipfile a whole disk as the archive's directory."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _MAX_DIRECTORY_BYTES:
            raise Refused(f"its zip directory claims {size:,} bytes; {FETCH_AGAIN}")
        return super().read(size)


def check_sums(path: str | Path) -> None:
    """ValueError where a record's bytes are not those that `torch.save` summed up; reads all."""
    with BoundedReader(open_regular(path)) as file:
        memory = np.memmap(file, dtype=np.uint8, mode="r")
        records = placed_records(file, memory)
        try:
            check_margins(memory, records)
        except Refused as error:
            raise ValueError(f"{path}: {error}") from error
        for info, record in records:
            found = 0
            for start in range(0, len(record), _CHECKED_BYTES):
                check_whole(memory)
                found = zlib.crc32(record[start : start + _CHECKED_BYTES].data, found)
            # torch can be told not to compute the sum, and then writes 0.
            if info.CRC and found != info.CRC:
                raise ValueError(
                    f"{path}: its record {shorten(info.filename)} does not have the checksum it "
                    f"should, so a weight is damaged; {FETCH_AGAIN}"
                )


def placed_records(
    file: io.BufferedReader, memory: np.ndarray
) -> list[tuple[zipfile.ZipInfo, np.ndarray]]:
    """Every record and its bytes, which no other record reaches into; none is read yet."""
    try:
        infos = zipfile.ZipFile(file).infolist()
    except zipfile.BadZipFile as error:
        raise Refused(
            f"its end, the archive's directory, is missing or damaged; {FETCH_AGAIN}"
        ) from error
    if len(infos) > MAX_RECORDS:
        raise Refused(
            f"it holds {len(infos):,} records and a model's file at most {MAX_RECORDS:,}; "
            "it is some other archive"
        )
    begins = sorted(info.header_offset for info in infos)
    ends = dict(itertools.zip_longest(begins, begins[1:], fillvalue=len(memory)))
    placed = []
    for info in infos:
        name = shorten(info.filename)
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise Refused(f"its record {name} is compressed, which torch.save never does")
        if info.flag_bits & 1:
            raise Refused(f"its record {name} is encrypted, which torch.save never does")
        start = payload_start(memory, info)
        if start + info.file_size > len(memory):
            raise Refused(f"its record {name} runs past the end of the file; {FETCH_AGAIN}")
        if start + info.file_size > ends[info.header_offset]:
            raise Refused(f"its record {name} runs into the next; {FETCH_AGAIN}")
        placed.append((info, memory[start : start + info.file_size]))
    return placed


_SUM_BEHIND = 8
"""A flag: the local header was written before the record's sum was known."""
_LOCAL_HEADER = struct.Struct("<4s5H3I2H")
_SIZE_ELSEWHERE = (0, 0xFFFFFFFF)
"""What the local header says where the size stands behind the record, or in a zip64 field."""


def payload_start(memory: np.ndarray, info: zipfile.ZipInfo) -> int:
    """Where a record's bytes begin: behind its local header, whose padding only it knows."""
    at = info.header_offset
    header = bytes(memory[at : at + _LOCAL_HEADER.size])
    magic, _, flags, method, *when, crc, packed, size, name_size, extra_size = _LOCAL_HEADER.unpack(
        header
    )
    start = at + _LOCAL_HEADER.size
    name = bytes(memory[start : start + name_size])
    agrees = (
        magic == b"PK\x03\x04"
        and method == info.compress_type
        and flags == info.flag_bits
        and tuple(when) == _when(info)
        and (crc == info.CRC or (flags & _SUM_BEHIND and not crc))
        and name == info.orig_filename.encode("utf-8" if info.flag_bits & 0x800 else "cp437")
        and all(n == info.file_size or n in _SIZE_ELSEWHERE for n in (packed, size))
    )
    if not agrees:
        raise Refused(
            f"its record {shorten(info.filename)} disagrees with the archive's directory; "
            f"{FETCH_AGAIN}"
        )
    return start + name_size + extra_size


def _when(info: zipfile.ZipInfo) -> tuple[int, int]:
    """The time and the date of a record, in zip's bits."""
    year, month, day, hour, minute, second = info.date_time
    return hour << 11 | minute << 5 | second // 2, year - 1980 << 9 | month << 5 | day
