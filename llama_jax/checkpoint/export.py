"""A checkpoint of any format to Hugging Face's, Meta's or peft's files, or GGUF, block by block."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from llama_jax.checkpoint.adapters import adapters_in, merged, with_adapter
from llama_jax.checkpoint.blocks import Cast
from llama_jax.checkpoint.dtypes import parse_dtype
from llama_jax.checkpoint.export_tensor import ExportTensor
from llama_jax.checkpoint.files.destination import writing
from llama_jax.checkpoint.files.gguf_writer import write_gguf
from llama_jax.checkpoint.files.json_file import read_object, write_json
from llama_jax.checkpoint.files.safetensors_writer import write_safetensors
from llama_jax.checkpoint.files.torch_writer import write_torch_file
from llama_jax.checkpoint.gguf.export import gguf_files, gguf_metadata
from llama_jax.checkpoint.huggingface.compressed import compressed_matrices
from llama_jax.checkpoint.huggingface.export import hf_files, hf_notes, hf_texts
from llama_jax.checkpoint.meta.export import (
    LAYOUTS,
    default_layout,
    meta_files,
    meta_notes,
    meta_params,
)
from llama_jax.checkpoint.peft import TENSORS
from llama_jax.checkpoint.peft.config import CONFIG
from llama_jax.checkpoint.peft.export import peft_config, peft_tensors
from llama_jax.checkpoint.reading import open_checkpoint
from llama_jax.checkpoint.source import Source
from llama_jax.tokenizer import load_tokenizer, tokenizer_files
from llama_jax.tokenizer.folder import MODEL_CONFIG, given_path

FORMATS = ("hf", "meta", "gguf", "peft")
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
    adapter: str | os.PathLike[str] | None = None,
    base: str | None = None,
    dtype: Any = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Exported:
    """Writes the checkpoint, whole or not at all, as `format` "hf", "meta", "gguf" or "peft".

    `shards` is how many weight files: for Meta the ranks of its model parallelism, 1 by default;
    for Hugging Face as few as hold 5 GB each. `layout` is how Meta's files cut the embedding:
    "llama2" by columns, "llama3" by rows; by default as in models with this RoPE base.

    LoRA adapters, the checkpoint's or those in the folder `adapter`, are merged; for "peft" they
    alone are written, and `base` is the name of the model that peft will put them on. Without
    `dtype` every tensor keeps its own, and for "hf" quantized matrices stay so, in the form of
    compressed-tensors; as GGUF it may be "q8_0" or "q4_0" too. `overwrite` replaces an older export
    and nothing else.
    """
    start, dst = time.monotonic(), Path(os.path.realpath(given_path(destination)))
    source = with_adapter(open_checkpoint(checkpoint), adapter)
    source.check_sums()
    if base is not None and format != "peft":
        raise ValueError(f"base={base!r} is what peft's format names; leave it out")
    wanted = None if dtype is None or format == "gguf" else parse_dtype(dtype)
    if format == "peft":
        plan, rounding = _plan_peft(source, shards, layout, base, wanted), None
    else:
        sums, rounding = merged(source, wanted)
        plan = _plan(sums, format, shards, layout, wanted or dtype)
    tensors = [tensor for file in plan.files.values() for tensor in file]
    stream = _Stream(sum(tensor.stored_bytes for tensor in tensors), progress)
    replaced = _extras if overwrite else None
    with writing(dst, _KIND, replaced, stream.total, plan.copies) as partial:
        for name, file_tensors in plan.files.items():
            plan.write(partial / name, file_tensors, stream)
        _write_texts(partial, plan, source)
    return Exported(
        source=source,
        path=dst,
        files=tuple(plan.files),
        bytes=stream.total,
        dtypes=tuple(sorted({tensor.stored_as for tensor in tensors})),
        seconds=time.monotonic() - start,
        notes=(*plan.notes, *([f"adapters merged: {rounding}"] if rounding else [])),
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
    write: Callable[[Path, list[ExportTensor], Any], None]
    texts: dict[str, Any]
    """JSON files, by name."""
    copies: dict[str, Path | bytes]
    """The tokenizer's files, by name."""
    notes: tuple[str, ...]


def _plan(source: Source, format: str, shards: int | None, layout: str | None, dtype: Any) -> _Plan:
    if format not in FORMATS:
        raise ValueError(f"format={format!r} is unknown; use one of {', '.join(FORMATS)}")
    if format != "meta" and layout is not None:
        raise ValueError(f"layout={layout!r} is of Meta's files; leave it out with format {format}")
    if format == "gguf":
        return _plan_gguf(source, shards, dtype)
    if format == "meta":
        return _plan_meta(source, 1 if shards is None else shards, layout, dtype)
    return _plan_hf(source, shards, dtype)


def _plan_gguf(source: Source, shards: int | None, dtype: Any) -> _Plan:
    if shards not in (None, 1):
        raise ValueError(f"shards={shards} files are not written as GGUF, which is one file")
    files = gguf_files(source.config, source.tensors, dtype)
    tokenizer = load_tokenizer(source.tokenizer) if source.tokenizer else None
    (tensors,) = files.values()
    metadata, notes = gguf_metadata(source.config, tensors, tokenizer)

    def write(path: Path, tensors: list[ExportTensor], stream: Any) -> None:
        write_gguf(path, metadata, tensors, stream)

    return _Plan(files, write, {}, {}, notes)


def _plan_peft(
    source: Source,
    shards: int | None,
    layout: str | None,
    base: str | None,
    dtype: np.dtype | None,
) -> _Plan:
    for name, value in (("shards", shards), ("layout", layout)):
        if value is not None:
            raise ValueError(f"{name}={value!r} is of a whole model's files; leave it out for peft")
    adapters = adapters_in(source)
    if not adapters:
        raise ValueError(
            f"{source.path} has no adapters, which are all that peft's files hold; name some by "
            "adapter=, or choose another format"
        )
    notes = () if base else (f"{CONFIG} names no model; say which one with base (--base)",)
    files = {TENSORS: peft_tensors(source.config, adapters, dtype)}
    texts = {CONFIG: peft_config(source.config, adapters, base)}
    return _Plan(files, write_safetensors, texts, {}, notes)


def _plan_meta(source: Source, shards: int, layout: str | None, dtype: np.dtype | None) -> _Plan:
    config = source.config
    layout = layout or default_layout(config)
    if layout not in LAYOUTS:
        raise ValueError(f"layout={layout!r} is unknown; use one of {', '.join(LAYOUTS)}")
    texts = {"params.json": meta_params(config, layout)}
    files = meta_files(config, source.tensors, shards=shards, layout=layout, dtype=dtype)
    return _Plan(files, write_torch_file, texts, _tokenizer_files(source), meta_notes(config))


def _plan_hf(source: Source, shards: int | None, dtype: np.dtype | None) -> _Plan:
    config, tensors = source.config, source.tensors
    matrices, notes = compressed_matrices(config, tensors) if dtype is None else ({}, ())
    files = hf_files(config, tensors, matrices=matrices, shards=shards, dtype=dtype)
    copies = _tokenizer_files(source)
    copies.pop(MODEL_CONFIG, None)  # config.json says again what it said
    tokenizer = load_tokenizer(source.tokenizer) if source.tokenizer else None
    texts = hf_texts(config, files, matrices, tokenizer)
    texts = {name: text for name, text in texts.items() if name not in copies}
    return _Plan(files, write_safetensors, texts, copies, (*hf_notes(tokenizer), *notes))


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
            packed = tensor.packed(cast_to(block))
            yield packed
            self.done += packed.nbytes
            if self.progress is not None:
                self.progress(self.done, self.total)
        self.warnings += cast_to.warnings(tensor.name)


def _extras(path: Path) -> list[Path] | None:
    """What was added to an export since, and is somebody's own; None where there is none."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        mark = read_object(path / _MARK)
        if mark["format"] == _FORMAT:
            known = {Path(name).parts[0] for name in mark["files"]}
            return [entry for entry in path.iterdir() if entry.name not in known]
    return None
