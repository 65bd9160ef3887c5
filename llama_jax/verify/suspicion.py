"""The mistakes that conversions are known for, looked for where two checkpoints differ."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from llama_jax.checkpoint.export_tensor import to_half_split
from llama_jax.checkpoint.source import Source
from llama_jax.verify.differences import TensorDifference
from llama_jax.weights.table import WeightPath

_ROWS = 64  # of what goes in; a wrong order of what comes out shows in each of them


def suspicions(a: Source, b: Source, tensors: Sequence[TensorDifference]) -> Iterator[str]:
    """Says what would explain the first difference of each kind, from a few rows of the weights."""
    wrong: dict[str, WeightPath] = {}
    for tensor in tensors:
        if not tensor.same:
            wrong.setdefault(tensor.path[-1], tensor.path)
    if "w1" in wrong and "w3" in wrong:
        layer = wrong["w1"][:-1]
        if _equal(_part(a, (*layer, "w1")), _part(b, (*layer, "w3"))):
            yield f"{'.'.join(layer)}: w1 of one is w3 of the other, so the two are exchanged"
    for name, heads in (("wq", a.config.n_heads), ("wk", a.config.n_kv_heads)):
        if name in wrong:
            seen_from_both = (
                _misplaced(a, b, wrong[name], heads),
                _misplaced(b, a, wrong[name], heads),
            )
            yield from itertools.islice(itertools.chain(*seen_from_both), 1)


def _misplaced(right: Source, wrong: Source, path: WeightPath, heads: int) -> Iterator[str]:
    """Whether the outputs lie in an order that comes of Hugging Face's, seen from the right one."""
    one, two, name = _part(right, path), _part(wrong, path), ".".join(path)
    theirs = to_half_split(one, right.config.head_dim)
    if _equal(two, theirs):
        yield (
            f"{name}: the two are in different orders of pairs, as Meta's and Hugging Face's are; "
            "a permutation was left out of one, or made twice"
        )
    for count in {right.config.n_heads, right.config.n_kv_heads} - {heads}:
        size, rest = divmod(len(two), count)
        if not rest and size % 2 == 0 and _equal(to_half_split(two, size), theirs):
            yield (
                f"{name} of {wrong.path} was brought from Hugging Face's order as {count} heads, "
                f"and it has {heads}"
            )


def _part(source: Source, path: WeightPath) -> np.ndarray:
    """A part of the weight, what comes out along the first axis."""
    tensor = source.tensors[path]
    return tensor[0 : min(_ROWS, tensor.shape[0]), :].astype(np.float32).T


def _equal(one: np.ndarray, two: np.ndarray) -> bool:
    return one.shape == two.shape and bool((one == two).all())
