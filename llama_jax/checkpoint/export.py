"""A checkpoint of any format to Hugging Face's or Meta's files, block by block."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from llama_jax.checkpoint.blocks import Cast
from llama_jax.checkpoint.dtypes import parse_dtype
from llama_jax.checkpoint.export_tensor import ExportTensor
from llama_jax.checkpoint.files.destination import writing
from llama_jax.checkpoint.files.given_path import given_path
from llama_jax.checkpoint.files.json_file import read_object, write_json
from llama_jax.checkpoint.files.safetensors_writer import write_safetensors
from llama_jax.checkpoint.files.torch_writer import write_torch_file
from llama_jax.checkpoint.huggingface.export import (
    INDEX,
    hf_config,
    hf_files,
    hf_index,
    hf_notes,
    special_ids,
    tokenizer_config,
)
from llama_jax.checkpoint.meta.export import (
    LAYOUTS,
    default_layout,
    meta_files,
    meta_notes,
    meta_params,
)
from llama_jax.checkpoint.reading import open_checkpoint
from llama_jax.checkpoint.source import Source
from llama_jax.tokenizer import load_tokenizer, tokenizer_files
from llama_jax.tokenizer.beside import MODEL_CONFIG

FORMATS = ("hf", "meta")
_MARK, _FORMAT = "export.json", "llama_jax export"
"""Names what an export wrote, so that another may replace it and nothing else."""
_KIND = "an export of llama_jax"


@dataclasses.dataclass(frozen=True)
class Exported:
    """What an export read and wrote."""

    source: Source
    path: Path
    files: tuple[str, ...]
    """The weight files' names."""
    bytes: int
    """Bytes of the weights alone."""
    dtypes: tuple[str, ...]
    seconds: float
    notes: tuple[str, ...]
    """What the format cannot say, and the reader of the files should know."""
    warnings: tuple[str, ...]
    """Tensors with values that are not finite, or that a cast made infinite, and how many."""


def export(
    checkpoint: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    format: str,
    shards: int | None = None,
    layout: str | None = None,
    dtype: Any = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Exported:
    """Writes the checkpoint, whole or not at all, as `format` "hf" or "meta".

    `shards` is how many weight files: for Meta the ranks of its model parallelism, 1 by default;
    for Hugging Face as few as hold 5 GB each. `layout` is how Meta's files cut the embedding:
    "llama2" by columns, "llama3" by rows; by default as in models with this RoPE base. Without
    `dtype` every tensor keeps its own. `overwrite` replaces an older export and nothing else.
    """
    start, dst = time.monotonic(), Path(os.path.realpath(given_path(destination)))
    source = open_checkpoint(checkpoint)
    source.check_sums()
    plan = _plan(source, format, shards, layout, None if dtype is None else parse_dtype(dtype))
    tensors = [tensor for file in plan.files.values() for tensor in file]
    stream = _Stream(sum(tensor.nbytes for tensor in tensors), progress)
    write = write_safetensors if format == "hf" else write_torch_file
    replaced = _extras if overwrite else None
    with writing(dst, _KIND, replaced, stream.total, plan.copies) as partial:
        for name, file_tensors in plan.files.items():
            write(partial / name, file_tensors, stream)
        _write_texts(partial, plan, source)
    return Exported(
        source=source,
        path=dst,
        files=tuple(plan.files),
        bytes=stream.total,
        dtypes=tuple(sorted({tensor.dtype.name for tensor in tensors})),
        seconds=time.monotonic() - start,
        notes=plan.notes,
        warnings=tuple(stream.warnings),
    )


def _write_texts(folder: Path, plan: _Plan, source: Source) -> None:
    """Writes the JSON files, one of which says what the export's files are."""
    names = [*plan.files, *plan.copies, *plan.texts, _MARK]
    mark = {"format": _FORMAT, "files": names, "source": str(source.path.resolve())}
    for name, value in {**plan.texts, _MARK: mark}.items():
        write_json(folder / name, value)


@dataclasses.dataclass(frozen=True)
class _Plan:
    files: dict[str, list[ExportTensor]]
    texts: dict[str, Any]
    """JSON files, by name."""
    copies: dict[str, Path | bytes]
    """The tokenizer's files, by name."""
    notes: tuple[str, ...]


def _plan(
    source: Source, format: str, shards: int | None, layout: str | None, dtype: np.dtype | None
) -> _Plan:
    if format == "meta":
        return _plan_meta(source, 1 if shards is None else shards, layout, dtype)
    if format != "hf":
        raise ValueError(f"format={format!r} is unknown; use one of {', '.join(FORMATS)}")
    if layout is not None:
        raise ValueError(f"layout={layout!r} is of Meta's files; leave it out with format hf")
    return _plan_hf(source, shards, dtype)


def _plan_meta(source: Source, shards: int, layout: str | None, dtype: np.dtype | None) -> _Plan:
    config = source.config
    layout = layout or default_layout(config)
    if layout not in LAYOUTS:
        raise ValueError(f"layout={layout!r} is unknown; use one of {', '.join(LAYOUTS)}")
    texts = {"params.json": meta_params(config, layout)}
    files = meta_files(config, source.tensors, shards=shards, layout=layout, dtype=dtype)
    return _Plan(files, texts, _tokenizer_files(source), meta_notes(config))


def _plan_hf(source: Source, shards: int | None, dtype: np.dtype | None) -> _Plan:
    files = hf_files(source.config, source.tensors, shards=shards, dtype=dtype)
    copies = _tokenizer_files(source)
    copies.pop(MODEL_CONFIG, None)  # config.json says again what it said
    tokenizer = load_tokenizer(source.tokenizer) if source.tokenizer else None
    own = next(tensor for file in files.values() for tensor in file).dtype
    texts = {"config.json": hf_config(source.config, own, tokenizer)}
    texts |= {"generation_config.json": special_ids(tokenizer), **tokenizer_config(tokenizer)}
    if len(files) > 1:
        texts[INDEX] = hf_index(files)
    texts = {name: text for name, text in texts.items() if name not in copies}
    return _Plan(files, texts, copies, hf_notes(tokenizer))


def _tokenizer_files(source: Source) -> dict[str, Path | bytes]:
    return tokenizer_files(source.tokenizer) if source.tokenizer else {}


class _Stream:
    """Gives a tensor's blocks in the dtype of the file, counting what goes by."""

    def __init__(self, total: int, progress: Callable[[int, int], None] | None) -> None:
        self.total, self.done, self.progress = total, 0, progress
        self.warnings: list[str] = []

    def __call__(self, tensor: ExportTensor) -> Iterator[np.ndarray]:
        cast_to = Cast(tensor.dtype)
        for block in tensor.blocks():
            cast = cast_to(block)
            yield cast
            self.done += cast.nbytes
            if self.progress is not None:
                self.progress(self.done, self.total)
        self.warnings += cast_to.warnings(tensor.name)


def _extras(path: Path) -> list[Path] | None:
    """What was added to an export since, and is somebody's own; None where there is none."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        mark = read_object(path / _MARK)
        if mark["format"] == _FORMAT:
            known = set(mark["files"])
            return [entry for entry in path.iterdir() if entry.name not in known]
    return None
