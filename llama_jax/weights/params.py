"""A model as one value: its weights and its config."""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import jax
import numpy as np

from llama_jax.config import Config
from llama_jax.field_docs import with_field_docs
from llama_jax.validation import WrongKindError
from llama_jax.weights.table import EMBEDDING, WeightPath, weight_table
from llama_jax.weights.weight import is_value, stored_bytes

Weights = dict[str, Any]
"""Nested dicts whose leaves are weights: arrays, or values of the `weights.weight.Weight` protocol.
{"tok_embeddings": {"weight": [vocab, dim]}, "layers_0": {"attention": {"wq": ...}, ...}, ...}"""


@with_field_docs
@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True)
class Params:
    """A model: the first argument of every function that runs one.

    A pytree whose leaves are the weights; the config is static, so a jitted function compiles once
    per config. `jax.tree.map`, `jax.grad` and `jax.device_put` work on it as on a plain dict.
    """

    weights: Weights
    """The arrays by Meta's names, dicts in a dict: `weights["layers_0"]["attention"]["wq"]`."""
    config: Config
    """The sizes and constants that the weights were made for."""
    tokenizer: Path | None = None
    """The tokenizer's file, for `generate` on text. Two `Params` that differ only in it have the
    same pytree structure, so moving the file recompiles nothing."""

    def replace(self, **changes: Any) -> Params:
        """These params with some fields changed."""
        return dataclasses.replace(self, **changes)

    def with_weight(self, path: WeightPath, weight: Any) -> Params:
        """These params with another weight in one place; they stay as they are.

        `params.with_weight(("layers_0", "attention", "wq"), wq)` shares every other weight.
        ValueError where there is no such place, or its weight has another shape.
        """
        if path not in _rows(self.config):
            known = ", ".join(map(repr, _rows(self.config)))
            raise ValueError(f"path={path!r} is not the path of a weight; the paths are {known}")
        shape = weight_at(self.weights, path).shape
        if getattr(weight, "shape", None) != shape:
            raise ValueError(
                f"the weight at {path!r} has shape {list(shape)}, and the new one "
                f"{list(np.shape(weight))}; give an array of the same shape"
            )
        return self.replace(weights=_replaced(self.weights, path, weight))

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the embedding, and so of the activations."""
        return weight_at(self.weights, EMBEDDING).dtype

    @property
    def size(self) -> int:
        """The parameter count: how many numbers the weights stand for."""
        return sum(math.prod(shape) for _, shape in self._unpadded())

    @property
    def nbytes(self) -> int:
        """Bytes of the weights, all devices together; a replicated weight counts once."""
        return sum(stored_bytes(weight, shape) for weight, shape in self._unpadded())

    def _unpadded(self) -> Iterator[tuple[Any, tuple[int, ...]]]:
        """Every weight, and its shape without a mesh's padding."""
        leaves = jax.tree_util.tree_leaves_with_path(self.weights, is_leaf=is_value)
        for keys, weight in leaves:
            path = tuple(getattr(key, "key", "") for key in keys)
            yield weight, true_shape(self.config, path, weight.shape)

    def __repr__(self) -> str:
        c = self.config
        return f"Params({self.size:,} parameters, {self.dtype}, dim={c.dim}, n_layers={c.n_layers})"

    def tree_flatten_with_keys(self) -> tuple[tuple[Any, ...], Any]:
        key = jax.tree_util.GetAttrKey("weights")
        return ((key, self.weights),), (self.config, _Uncompared(self.tokenizer))

    @classmethod
    def tree_unflatten(cls, static: Any, children: Any) -> Params:
        (weights,), (config, tokenizer) = children, static
        return cls(weights, config, tokenizer.value)


def check_params(params: Any) -> None:
    """WrongKindError unless `params` is a model's, loaded or made."""
    if isinstance(params, Params):
        return
    if isinstance(params, str | PathLike):
        raise WrongKindError(
            f"params={str(params)!r} is a path; load it first: llama_jax.load(path)"
        )
    raise WrongKindError(
        f"params is a {type(params).__name__} and must be a Params, which llama_jax.load and "
        "init_params return; of a tuple of them and other state, pass the Params alone"
    )


def weight_at(weights: Weights, path: WeightPath) -> Any:
    """The weight, or the group of weights, at a path."""
    return functools.reduce(operator.getitem, path, weights)


def true_shape(config: Config, path: WeightPath, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape without a mesh's padding."""
    row = _rows(config).get(path)
    if row is None or row.padded is None or len(shape) != len(row.shape):
        return shape
    axis = row.padded
    return (*shape[:axis], min(shape[axis], row.shape[axis]), *shape[axis + 1 :])


def nested(flat: Mapping[WeightPath, Any]) -> dict[str, Any]:
    """Nested dicts, as `Params.weights` is, from values by path."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = value
    return tree


def _replaced(weights: Weights, path: WeightPath, weight: Any) -> Weights:
    """New dicts along the path, and the same arrays."""
    first, *rest = path
    return weights | {first: _replaced(weights[first], tuple(rest), weight) if rest else weight}


_rows = functools.lru_cache(maxsize=8)(weight_table)


@dataclasses.dataclass(frozen=True, eq=False)
class _Uncompared:
    """Static data of a pytree that is ignored where structures are compared."""

    value: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Uncompared)

    def __hash__(self) -> int:
        return 0
