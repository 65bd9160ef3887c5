"""A model as one value: its weights and its config."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from llama_jax.config import Config

Weights = dict[str, Any]
"""Nested dicts whose leaves are weights: arrays, or pytrees that multiply (`ops.linear.Weight`)."""
WeightPath = tuple[str, ...]
"""A weight's keys in `Weights`, outermost first: ("layers_0", "attention", "wq")."""
VOCABULARY: dict[WeightPath, int] = {("tok_embeddings", "weight"): 0, ("output", "weight"): 1}
"""The weights that have something for each token, and along which axis. On a mesh that does not
divide the vocabulary they go on with zeros."""


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True)
class Params:
    """A model: what every function that runs one takes first.

    A pytree whose leaves are the weights; the config is static, so a jitted function compiles once
    per config. `jax.tree.map`, `jax.grad` and `jax.device_put` work on it as on a plain dict.
    """

    weights: Weights
    config: Config
    tokenizer: Path | None = None
    """Where the tokenizer lies, for `generate` on text. Not compared: moving the files recompiles
    nothing, and a jitted function that returns Params returns the path it was traced with."""

    def replace(self, **changes: Any) -> Params:
        """These params with some fields changed."""
        return dataclasses.replace(self, **changes)

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the embedding, which the activations take."""
        return self.weights["tok_embeddings"]["weight"].dtype

    @property
    def size(self) -> int:
        """How many numbers the weights hold: the parameter count."""
        return sum(numbers for numbers, _ in self._numbers())

    @property
    def nbytes(self) -> int:
        """Bytes of the weights, all devices together (a replicated weight counts once)."""
        return sum(numbers * itemsize for numbers, itemsize in self._numbers())

    def _numbers(self) -> Iterator[tuple[int, int]]:
        """Of each array how many numbers it has, less a padded vocabulary's, and their size."""
        for path, leaf in jax.tree_util.tree_leaves_with_path(self.weights):
            shape = list(leaf.shape)
            axis = VOCABULARY.get(tuple(getattr(key, "key", "") for key in path))
            if axis is not None:
                shape[axis] = min(shape[axis], self.config.vocab_size)
            yield math.prod(shape), leaf.dtype.itemsize

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


def nested(flat: Mapping[WeightPath, Any]) -> dict[str, Any]:
    """Nested dicts, as `Params.weights` is, from values by path."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = value
    return tree


@dataclasses.dataclass(frozen=True, eq=False)
class _Uncompared:
    """Carries a value through a pytree's structure without making structures differ."""

    value: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Uncompared)

    def __hash__(self) -> int:
        return 0
