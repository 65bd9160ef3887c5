"""What lies in a checkpoint; no weight is loaded."""

from __future__ import annotations

import dataclasses
import math
import os
from typing import Any

from llama_jax.checkpoint import native
from llama_jax.checkpoint.origin import repository_of
from llama_jax.checkpoint.reading import open_checkpoint
from llama_jax.checkpoint.source import Source


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What lies in a checkpoint."""

    source: Source
    parameters: dict[str, int]
    """How many numbers are stored in each dtype, or as each kind of weight."""
    files: int
    """That hold weights."""
    disk_bytes: int
    """Bytes of the weights' files, and of what describes them."""
    repository: str | None
    """Where on the Hub the checkpoint comes from, hf:ORG/NAME@COMMIT; None if it does not."""


def stored_name(tensor: Any) -> str:
    """How a weight's numbers lie in its file, in a word or two: float32, int8, Q4_1."""
    return str(getattr(tensor, "stored_as", getattr(tensor, "kind", tensor.dtype.name)))


def inspect_checkpoint(path: str | os.PathLike[str]) -> Inspection:
    """Opens a checkpoint of any format and counts what is there; no weight is loaded."""
    source = open_checkpoint(path)
    parameters: dict[str, int] = {}
    for tensor in source.tensors.values():
        name = stored_name(tensor)
        parameters[name] = parameters.get(name, 0) + math.prod(tensor.shape)
    files = source.files
    if source.format == "native":
        root = source.path / native.WEIGHTS
        files = tuple(f for f in root.rglob("*") if f.is_file())
        count = sum("c" in f.relative_to(root).parts for f in files)  # the others say what is there
    else:
        count = len(files)
    size = sum(f.stat().st_size for f in files)
    return Inspection(source, parameters, count, size, repository_of(source))
