"""`Params` into a native checkpoint: whole, or its adapters beside the model that they adapt."""

from __future__ import annotations

from os import PathLike
from typing import Any

from llama_jax.checkpoint import native
from llama_jax.checkpoint.blocks import Trimmed
from llama_jax.checkpoint.native.values import part_path
from llama_jax.sharding.adapters import adapters_of
from llama_jax.tokenizer.folder import given_path
from llama_jax.weights.params import Params, check_params, weight_at
from llama_jax.weights.table import weight_table
from llama_jax.weights.weight import is_value


def save(params: Params, path: str | PathLike[str], *, overwrite: bool = False) -> None:
    """Writes a native checkpoint, weights as they are, with a copy of the tokenizer.

    All at once: a failure leaves `path` as it was. An existing directory is an error, unless it
    is empty, or a checkpoint and `overwrite` is set.
    """
    _write(params, path, overwrite=overwrite)


def save_adapters(params: Params, path: str | PathLike[str]) -> None:
    """Writes a checkpoint anew of which nothing but its adapters has changed since it was written.

    The new one takes over the files of all other weights by hard links, where the file system has
    them. So it is a checkpoint like any other, and costs the time and the space of the adapters.
    """
    changed = {part_path(at, name) for at in adapters_of(params) for name in ("a", "b")}
    _write(params, path, overwrite=True, changed=changed)


def _write(
    params: Params, path: str | PathLike[str], *, overwrite: bool, changed: Any = None
) -> None:
    check_params(params)
    weights = {
        path: _unpadded(weight_at(params.weights, path), row.shape)
        for path, row in weight_table(params.config).items()
    }
    native.write(
        given_path(path),
        params.config,
        weights,
        tokenizer=params.tokenizer,
        overwrite=overwrite,
        changed=changed,
    )


def _unpadded(weight: Any, shape: tuple[int, ...]) -> Any:
    """A weight without what a mesh may have put after it; a value's parts lose theirs later."""
    return weight if is_value(weight) or weight.shape == shape else Trimmed(weight, shape)
