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
PADDED: dict[WeightPath, tuple[int, str]] = {
    ("tok_embeddings", "weight"): (0, "vocab_size"),
    ("output", "weight"): (1, "vocab_size"),
    ("feed_forward", "w1"): (1, "hidden_dim"),
    ("feed_forward", "w3"): (1, "hidden_dim"),
    ("feed_forward", "w2"): (0, "hidden_dim"),
    ("feed_forward", "b1"): (0, "hidden_dim"),
    ("feed_forward", "b3"): (0, "hidden_dim"),
}
"""Where a weight goes on with zeros on a mesh that does not divide it: by the end of its path, the
axis and the size without them. They change no number that the model computes."""


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
        """Of each array how many numbers it has, less the zeros after it, and their size."""
        for keys, leaf in jax.tree_util.tree_leaves_with_path(self.weights):
            path = tuple(getattr(key, "key", "") for key in keys)
            yield math.prod(true_shape(self.config, path, leaf.shape)), leaf.dtype.itemsize

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


def true_shape(config: Config, path: WeightPath, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a weight without the zeros that may follow it on a mesh."""
    if path[-2:] not in PADDED:
        return shape
    axis, size = PADDED[path[-2:]]
    return (*shape[:axis], min(shape[axis], getattr(config, size)), *shape[axis + 1 :])


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
