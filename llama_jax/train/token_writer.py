"""One split of a folder of tokens, written document by document."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from llama_jax.train.token_folder import ROW_STARTS, STARTS, TRAINED, sha256_of

_SHARD = re.compile(r"[0-9]{5,}\.bin")


def is_written(file: Path) -> bool:
    """Whether a file in a split's folder has a name that such files have."""
    named = file.name in (STARTS, ROW_STARTS, TRAINED)
    return named or _SHARD.fullmatch(file.name) is not None


class SplitWriter:
    """Appends documents to shards of equal size; a document may go on in the next shard."""

    def __init__(self, folder: Path, dtype: np.dtype, shard_tokens: int) -> None:
        folder.mkdir()
        self._folder, self._dtype, self._shard_tokens = folder, dtype, shard_tokens
        self._shards: list[dict[str, Any]] = []
        self._shard: BinaryIO | None = None
        self._starts = (folder / STARTS).open("xb")
        self._starts.write(_npy_header(0))
        self.documents = self.tokens = self.text_bytes = 0

    def __enter__(self) -> SplitWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        for file in (self._shard, self._starts):
            if file is not None:
                file.close()

    def add(self, ids: Sequence[int] | np.ndarray, text_bytes: int) -> None:
        """Appends one document's tokens."""
        self._starts.write(self.tokens.to_bytes(8, "little"))
        self.documents += 1
        self.text_bytes += text_bytes
        tokens = np.array(ids, self._dtype)
        while tokens.size:
            room = self._shard_tokens - self.tokens % self._shard_tokens
            part, tokens = tokens[:room], tokens[room:]
            if self._shard is None:
                self._shard = self._shard_file().open("xb")
            self._shard.write(part.tobytes())
            self.tokens += part.size
            if part.size == room:
                self._finish_shard()

    def finish(self) -> dict[str, Any]:
        """Waits until all is on disk, and returns what the manifest says of the split."""
        self._finish_shard()
        self._starts.seek(0)
        self._starts.write(_npy_header(self.documents))
        _close(self._starts)
        return {
            "documents": self.documents,
            "tokens": self.tokens,
            "text_bytes": self.text_bytes,
            "starts": file_record(self._folder / STARTS),
            "shards": self._shards,
        }

    def _shard_file(self) -> Path:
        return self._folder / f"{len(self._shards):05}.bin"

    def _finish_shard(self) -> None:
        if self._shard is not None:
            _close(self._shard)
            self._shards.append(file_record(self._shard_file()))
            self._shard = None


def file_record(file: Path) -> dict[str, Any]:
    """What the manifest says of a file in a split's folder."""
    name = f"{file.parent.name}/{file.name}"
    return {"file": name, "bytes": file.stat().st_size, "sha256": sha256_of(file)}


def _close(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
    file.close()


def _npy_header(count: int) -> bytes:
    """How a file of so many uint64 begins; NumPy leaves room, so its length is always the same."""
    header = io.BytesIO()
    fields = {"descr": "<u8", "fortran_order": False, "shape": (count,)}
    np.lib.format.write_array_header_1_0(header, fields)
    return header.getvalue()
