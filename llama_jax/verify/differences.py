"""How the tensors of two checkpoints differ, read a band at a time."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from llama_jax.checkpoint.blocks import Stored, cells, count_not_finite, whole
from llama_jax.checkpoint.computed import DenseTensor
from llama_jax.checkpoint.source import Source
from llama_jax.weights.table import EMBEDDING, WeightPath

_BLOCK_NUMBERS = 2**23
QUANTIZED = 0.25
"""The largest `error` of a tensor that is another's, quantized. Normally distributed numbers in
int4 have 0.1, in fp8 0.03 and in int8 0.01; those of two models are apart by 1.4."""


@dataclasses.dataclass(frozen=True)
class TensorDifference:
    """What became of one weight from the first checkpoint to the second."""

    path: WeightPath
    numbers: int
    dtypes: tuple[str, str]
    differing: int
    """How many numbers differ, by their bits; in float32 where the dtypes are two."""
    largest: float
    """The largest difference; infinite where a NaN or an infinity stands on one side alone, be it
    because a cast overflowed."""
    relative: float
    """The largest difference in proportion to the number that differs."""
    rounded: bool
    """Whether one tensor, cast to the other's dtype, is the other: a conversion and no error."""
    not_finite: tuple[int, int]
    """How many numbers of each are NaN or infinite."""
    error: float = 0.0
    """The root mean square of the differences, as a share of the first tensor's own; 0 unless one
    of the two is quantized."""
    kinds: tuple[str | None, str | None] = (None, None)
    """How each is quantized: "int8", "Q4_1", "bitsandbytes 4 bit"; None of plain floats."""

    @property
    def quantized(self) -> bool:
        """Whether one is the other but for the rounding of few bits."""
        return any(self.kinds) and self.error <= QUANTIZED

    @property
    def same(self) -> bool:
        return self.differing == 0 or self.rounded or self.quantized


def compare_tensors(
    a: Source, b: Source, moved: Callable[[int], None]
) -> tuple[list[TensorDifference], list[str]]:
    """Every weight that both have in one shape, and in words those that they have not.

    `moved` is told the bytes read of both.
    """
    found, unmatched = [], []
    for path in {**a.tensors, **b.tensors}:
        name = ".".join(path)
        if path not in a.tensors or path not in b.tensors:
            unmatched.append(f"{name} is only in {(a if path in a.tensors else b).path}")
        elif a.tensors[path].shape != b.tensors[path].shape:
            shapes = [list(source.tensors[path].shape) for source in (a, b)]
            unmatched.append(f"{name} has shape {shapes[0]} in {a.path}, {shapes[1]} in {b.path}")
        else:
            found.append(_difference(path, a.tensors[path], b.tensors[path], moved))
    return found, unmatched


def _difference(
    path: WeightPath, a: Stored, b: Stored, moved: Callable[[int], None]
) -> TensorDifference:
    differing, largest, relative, squares = 0, 0.0, 0.0, np.zeros(2)
    not_finite = np.zeros(2, int)
    casts = {dtype for dtype in (a.dtype, b.dtype)} if a.dtype != b.dtype else set()
    kinds = _kind(a), _kind(b)
    at_once = any(hasattr(t, "kind") or isinstance(t, DenseTensor) for t in (a, b))
    sides = a.shape if at_once else _sides(path, a.shape)
    for index in cells(whole(a.shape), sides):
        one, two = a[index], b[index]
        moved((a.nbytes + b.nbytes) * one.size // math.prod(a.shape))
        not_finite += count_not_finite(one), count_not_finite(two)
        if one.dtype == two.dtype and np.array_equal(_bits(one), _bits(two)):
            continue
        with np.errstate(over="ignore", invalid="ignore"):
            casts = {t for t in casts if np.array_equal(_bits(one.astype(t)), _bits(two.astype(t)))}
        unlike = _bits(one) != _bits(two) if one.dtype == two.dtype else _unlike(one, two)
        if unlike.any():
            differing += int(np.count_nonzero(unlike))
            by, share = _distance(one[unlike], two[unlike])
            largest, relative = max(largest, by), max(relative, share)
        if any(kinds):
            squares += _squares(one, two), _squares(one, np.zeros((), one.dtype))
    return TensorDifference(
        path=path,
        numbers=math.prod(a.shape),
        dtypes=(a.dtype.name, b.dtype.name),
        differing=differing,
        largest=largest,
        relative=relative,
        rounded=bool(casts) and math.isfinite(largest),
        not_finite=(int(not_finite[0]), int(not_finite[1])),
        error=_share(*squares),
        kinds=kinds,
    )


def _kind(tensor: Stored) -> str | None:
    """How a weight is quantized in its file; None of floats that lie as they are."""
    return getattr(tensor, "kind", None) or getattr(tensor, "stored_as", None)


def _unlike(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    return _bits(one.astype(np.float32)) != _bits(two.astype(np.float32))


def _distance(one: np.ndarray, two: np.ndarray) -> tuple[float, float]:
    """The largest difference and the largest in proportion; infinite where it is no number."""
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        one, two = one.astype(np.float32), two.astype(np.float32)
        alike = (one == two) | (np.isnan(one) & np.isnan(two))  # -0 is 0, in other bits
        by = np.where(alike, 0, np.abs(one - two))
        by = np.where(np.isfinite(by), by, np.inf)
        share = np.where(by > 0, by / np.maximum(np.abs(one), np.abs(two)), 0)
        return float(by.max()), float(np.where(np.isnan(share), np.inf, share).max())


def _squares(one: np.ndarray, two: np.ndarray) -> float:
    """The sum of the squared differences; infinite or NaN where a number is."""
    with np.errstate(over="ignore", invalid="ignore"):
        apart = one.astype(np.float32) - two.astype(np.float32)
        return float(np.vdot(apart, apart))


def _share(apart: float, own: float) -> float:
    """The root of the quotient; infinite where it is no number."""
    if apart == 0:
        return 0.0
    return math.sqrt(apart / own) if own > 0 and math.isfinite(apart / own) else math.inf


def _bits(block: np.ndarray) -> np.ndarray:
    return block.view(f"u{block.dtype.itemsize}")


def _sides(path: WeightPath, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Bands as they lie in the files: of rows of the embedding, of columns of any other matrix."""
    axis = 0 if path == EMBEDDING else len(shape) - 1
    width = math.prod(shape) // shape[axis]
    step = max(512, _BLOCK_NUMBERS // width // 512 * 512)
    return tuple(step if a == axis else size for a, size in enumerate(shape))
