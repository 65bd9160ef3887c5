"""A checkpoint of any format to a native one, tensor by tensor."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from llama_jax.checkpoint import native
from llama_jax.checkpoint.dtypes import parse_dtype
from llama_jax.checkpoint.files.digests import digests_beside
from llama_jax.checkpoint.origin import origin
from llama_jax.checkpoint.quantizing import AS_ARRAYS, as_arrays, rounded_tensors
from llama_jax.checkpoint.reading import open_checkpoint
from llama_jax.checkpoint.source import Source
from llama_jax.distributed import from_first
from llama_jax.tokenizer import load_tokenizer
from llama_jax.tokenizer.folder import given_path
from llama_jax.tokenizer.gguf_header import UnreadTokenizer
from llama_jax.weights.quantize import Rule
from llama_jax.weights.table import WeightPath


@dataclasses.dataclass(frozen=True)
class Conversion:
    """What a conversion read and wrote."""

    source: Source
    written: native.Written


def convert(
    source: str | PathLike[str],
    destination: str | PathLike[str],
    *,
    dtype: Any = None,
    max_seq_len: int | None = None,
    rope_factor: float | None = None,
    quantize: Rule | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Conversion:
    """Writes the checkpoint in `source` as a native one, holding a few tensors at a time.

    Without `dtype` every tensor keeps its own. `max_seq_len` stands in for the files' own, of any
    format, and `rope_factor` (of Llama 3.1's scaling) for what Meta's files alone do not say.
    `quantize` rounds matrices as `llama_jax.quantize` does, each as it is written; what a file
    holds in 8 or 4 bits stays so, and with "none" becomes arrays.
    `progress` is told bytes done and in all. A failure, or a kill, leaves `destination` as it was.
    Of several processes (`distributed`) the first writes, and the others wait for it.
    """
    opened = open_checkpoint(source, max_seq_len=max_seq_len, rope_factor=rope_factor)
    opened = _with_its_tokenizer(opened)

    opened.check_sums()
    tensors: Mapping[WeightPath, Any] = opened.tensors
    if quantize == AS_ARRAYS:
        tensors = as_arrays(tensors)
    elif quantize is not None:
        tensors = rounded_tensors(tensors, quantize, dtype and parse_dtype(dtype))

    def write() -> dict[str, Any]:
        with digests_beside(opened.files) as sums:
            written = native.write(
                given_path(destination),
                opened.config,
                tensors,
                dtype=dtype,
                tokenizer=opened.tokenizer,
                source=lambda: origin(opened, sums()),
                progress=progress,
                overwrite=overwrite,
            )
        return {**dataclasses.asdict(written), "path": str(written.path)}

    return Conversion(opened, _written(from_first(write)))


def _written(told: dict[str, Any]) -> native.Written:
    """What was written, by the word of the process that wrote it."""
    changes: dict[str, Any] = {"path": Path(told["path"])}
    changes |= {name: tuple(told[name]) for name in ("dtypes", "warnings")}
    return native.Written(**{**told, **changes})


def _with_its_tokenizer(source: Source) -> Source:
    """The source, once its tokenizer is known to be one, with what is to be said of that.

    A GGUF file's of a kind that is not read is left out, with a warning that says what to put in
    its place.
    """
    try:
        tokenizer = None if source.tokenizer is None else load_tokenizer(source.tokenizer)
    except UnreadTokenizer as error:
        warnings = (*source.warnings, str(error))
        return dataclasses.replace(source, tokenizer=None, warnings=warnings)
    return dataclasses.replace(source, notes=source.notes_with(tokenizer))
