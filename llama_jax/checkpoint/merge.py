"""A checkpoint and its adapters to one whose weights are their sums."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from os import PathLike
from typing import Any

from llama_jax.checkpoint import native
from llama_jax.checkpoint.adapters import Rounding, adapters_in, merged, with_adapter
from llama_jax.checkpoint.dtypes import parse_dtype
from llama_jax.checkpoint.files.digests import digests_beside
from llama_jax.checkpoint.origin import origin
from llama_jax.checkpoint.reading import open_checkpoint
from llama_jax.checkpoint.source import Source
from llama_jax.tokenizer.folder import given_path


@dataclasses.dataclass(frozen=True)
class Merge:
    """What a merge read and wrote."""

    source: Source
    adapted: int
    """How many weights had an adapter."""
    written: native.Written
    rounding: Rounding


def merge_checkpoint(
    checkpoint: str | PathLike[str],
    destination: str | PathLike[str],
    *,
    adapter: str | PathLike[str] | None = None,
    dtype: Any = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Merge:
    """Writes the checkpoint as a native one without adapters, a block of a weight at a time.

    Its adapters, or those in the folder `adapter`, are added into the weights, dequantised where
    they are quantized; see `adapters.merged`. Without `dtype` every weight keeps its own.
    ValueError where there is no adapter.
    """
    wanted = None if dtype is None else parse_dtype(dtype)
    source = with_adapter(open_checkpoint(checkpoint), adapter)
    if not (there := adapters_in(source)):
        raise ValueError(
            f"{checkpoint} has no adapters to merge; name a folder that holds some: --adapter"
        )
    source.check_sums()
    sums, rounding = merged(source, wanted)
    with digests_beside(source.files) as digests:
        written = native.write(
            given_path(destination),
            sums.config,
            sums.tensors,
            dtype=dtype,
            tokenizer=sums.tokenizer,
            source=lambda: origin(source, digests()),
            progress=progress,
            overwrite=overwrite,
        )
    return Merge(source, len(there), written, rounding)
