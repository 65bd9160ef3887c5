"""A checkpoint of any format, opened: its config, and every weight to be read part by part."""

from __future__ import annotations

import contextlib
import dataclasses
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from llama_jax.checkpoint import native
from llama_jax.checkpoint.blocks import ReadByPart, Stored
from llama_jax.checkpoint.gguf import open_gguf
from llama_jax.checkpoint.huggingface import is_hf, open_hf
from llama_jax.checkpoint.huggingface.files import other_weights
from llama_jax.checkpoint.meta import is_meta, open_meta
from llama_jax.checkpoint.named import NAMES, find_checkpoint
from llama_jax.checkpoint.native.values import StoredValue, part_path
from llama_jax.checkpoint.placing import Index
from llama_jax.checkpoint.source import Source, own_tokenizer
from llama_jax.tokenizer.foreign import in_short
from llama_jax.tokenizer.gguf_header import gguf_in, is_gguf
from llama_jax.weights.table import WeightPath, weight_table
from llama_jax.weights.weight import ARRAY, is_value, parts_of


def open_checkpoint(
    path: str | PathLike[str] | None = None,
    *,
    max_seq_len: int | None = None,
    rope_factor: float | None = None,
) -> Source:
    """Opens a native checkpoint, or somebody else's files, told apart by what lies there.

    The path is one as `load` takes it.

    Shapes and dtypes are checked, and no weight is read. `max_seq_len` stands in for the files'
    own; `rope_factor` (of Llama 3.1's scaling) for what Meta's do not say, and where others say
    theirs it is an error.
    """
    path = find_checkpoint(path)
    with in_short():
        if native.is_native(path):
            _check_unsaid(path, rope_factor)
            return _open_native(path, max_seq_len)
        return open_source(path, max_seq_len=max_seq_len, rope_factor=rope_factor)


def open_source(
    path: Path, *, max_seq_len: int | None = None, rope_factor: float | None = None
) -> Source:
    """Opens a checkpoint of a foreign format; FileNotFoundError says what was looked for."""
    if not path.is_dir() and (path.is_file() or path.suffix == ".gguf"):
        if not (is_gguf(path) or path.suffix == ".gguf"):
            raise ValueError(
                f"{path} is a file; pass the checkpoint's directory that it lies in, {path.parent}"
            )
        _check_unsaid(path, rope_factor)
        return open_gguf(path, max_seq_len=max_seq_len)
    if is_meta(path):
        source = open_meta(path, max_seq_len=max_seq_len, rope_factor=rope_factor)
        if not is_hf(path):
            return source
        note = "Hugging Face's files lie there too: Meta's are read, move them away to read those"
        return dataclasses.replace(source, notes=(*source.notes, note))
    if is_hf(path):
        _check_unsaid(path, rope_factor)
        return open_hf(path, max_seq_len=max_seq_len)
    if not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist; pass a checkpoint's directory, hf:ORG/NAME or a name: "
            f"{', '.join(NAMES)}"
        )
    if not path.is_dir():
        raise ValueError(
            f"{path} is a pipe, a socket or a device; pass a checkpoint's directory or GGUF file"
        )
    if (only := gguf_in(path)) is not None:
        return open_source(only, max_seq_len=max_seq_len, rope_factor=rope_factor)
    for below in sorted(path.iterdir()):
        if _holds_one(below):
            raise FileNotFoundError(
                f"{path} holds no checkpoint, and {below} does; pass that directory"
            )
    raise FileNotFoundError(
        f"{path} holds no checkpoint: neither checkpoint.json (native), params.json and "
        "consolidated.*.pth (Meta) nor config.json and model*.safetensors (Hugging Face)"
        f"{other_weights(path) or ''}"
    )


def _holds_one(folder: Path) -> bool:
    with contextlib.suppress(OSError, ValueError):  # one that may not be looked into
        return folder.is_dir() and (native.is_native(folder) or is_meta(folder) or is_hf(folder))
    return False


def _check_unsaid(path: Path, rope_factor: float | None) -> None:
    if rope_factor is not None:
        says = f"{path} states its own scaling"
        if path.is_dir():
            says = f"{path / 'config.json'} states its own scaling, so change it there"
        raise ValueError(
            f"rope_factor={rope_factor:g} is for Meta's files, which do not say it; {says}"
        )


def _open_native(path: Path, max_seq_len: int | None) -> Source:
    config = native.read_config(path)
    if max_seq_len is not None:
        config = config.replace(max_seq_len=max_seq_len)
    stored = native.stored_weights(path, config)
    tensors = {at: _stored(path, at, stored[at]) for at in weight_table(config)}
    return Source(path, "native", config, tensors, own_tokenizer(path), files=(), notes=())


def _stored(checkpoint: Path, path: WeightPath, weight: Any) -> Stored:
    """A weight of a native checkpoint, to be read part by part."""
    parts = {
        name: NativeTensor(checkpoint, part_path(path, name), part.shape, part.dtype)
        for name, part in parts_of(weight).items()
    }
    if not is_value(weight):
        return parts[ARRAY]
    return StoredValue(weight.kind, np.dtype(weight.dtype), weight.constants(), dict(parts))


@dataclasses.dataclass(frozen=True)
class NativeTensor(ReadByPart):
    """One weight of a native checkpoint, read as a `StoredTensor` is."""

    checkpoint: Path
    path: WeightPath
    shape: tuple[int, ...]
    dtype: np.dtype

    def read(self, index: Index, out: np.ndarray) -> None:
        """Reads the part under `index` into `out`, in the dtype and the strides of `out`."""
        from llama_jax.checkpoint.native import weight_files

        weight_files.read_part(self.checkpoint / native.WEIGHTS, self.path, index, out)
