"""Whether two checkpoints are one model, and whether our model computes what a checkpoint means."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from llama_jax.checkpoint.dtypes import parse_dtype
from llama_jax.checkpoint.reading import open_checkpoint
from llama_jax.checkpoint.source import Source
from llama_jax.config import Config
from llama_jax.verify.differences import TensorDifference, compare_tensors
from llama_jax.verify.reference import reference_logits
from llama_jax.verify.suspicion import suspicions

_TIME, _FARTHEST = 16, 100_000
"""Tokens in a probe, and one more than the last position in it."""
_TOLERANCES = {"float32": 2e-5, "float16": 1e-2, "bfloat16": 0.1}
"""The largest allowed difference from the reference, as a share of the largest logit. The worst
measured on CPU over every model of the tests was 1.7e-6, 4.7e-3 and 5.3e-2: float32 is allowed ten
times that, for deeper models, and the others twice."""
_EXACT = 1e-9
"""The reference against itself, on numbers that are the same: a last bit of float64."""


def _quiet() -> np.errstate:
    """Silences NumPy's warnings: the comparison reports numbers that are not finite itself."""
    return np.errstate(over="ignore", invalid="ignore", divide="ignore")


@dataclasses.dataclass(frozen=True)
class FieldDifference:
    """A field of the config in which two checkpoints differ."""

    name: str
    values: tuple[Any, Any]

    @property
    def matters(self) -> bool:
        """Whether the model computes something else: only `max_seq_len` changes no number."""
        return self.name != "max_seq_len"


@dataclasses.dataclass(frozen=True)
class LogitsDifference:
    """How far two sets of logits on the same tokens are apart."""

    where: str
    positions: tuple[int, ...]
    largest: float
    """The largest difference; infinite where a NaN or an infinity stands in one set alone, and in
    any case where our model is held against the reference."""
    scale: float
    """The largest finite logit."""
    not_finite: tuple[int, int]
    """How many of each set are NaN or infinite."""
    tolerance: float | None
    """As a share of `scale`; None where weights were rounded, and how far that carries is the
    model's own affair: the weights are then judged, and these numbers only told."""

    @property
    def same(self) -> bool:
        if self.tolerance is None or self.largest == 0:
            return math.isfinite(self.largest)
        return self.largest <= self.tolerance * self.scale


@dataclasses.dataclass(frozen=True)
class Comparison:
    """All that two checkpoints were compared by."""

    a: Source
    b: Source
    fields: tuple[FieldDifference, ...]
    tensors: tuple[TensorDifference, ...]
    unmatched: tuple[str, ...]
    """Tensors that only one has, or that are of two shapes, in words."""
    logits: tuple[LogitsDifference, ...]
    """Empty where the vocabularies have two sizes."""
    suspicions: tuple[str, ...]
    """Known mistakes that would explain what differs."""

    @property
    def same(self) -> bool:
        """Whether both are one model, but for rounding to another dtype and for `max_seq_len`."""
        return (
            not any(field.matters for field in self.fields)
            and all(tensor.same for tensor in self.tensors)
            and not self.unmatched
            and all(logits.same for logits in self.logits)
        )


def compare(a: Source, b: Source, progress: Callable[[int, int], None] | None = None) -> Comparison:
    """Compares every tensor, the configs, and the logits of the NumPy reference on both.

    Nothing is held but bands of tensors. `progress` is told the bytes read and to read, of the
    tensors alone.
    """
    total = sum(tensor.nbytes for source in (a, b) for tensor in source.tensors.values())
    done = 0

    def moved(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    tensors, unmatched = compare_tensors(a, b, moved)
    fields = tuple(
        FieldDifference(field.name, (one, two))
        for field in dataclasses.fields(Config)
        if (one := getattr(a.config, field.name)) != (two := getattr(b.config, field.name))
    )
    return Comparison(
        a=a,
        b=b,
        fields=fields,
        tensors=tuple(tensors),
        unmatched=tuple(unmatched),
        logits=_compare_logits(a, b, tensors),
        suspicions=tuple(suspicions(a, b, tensors)),
    )


def compare_with_model(
    path: str | os.PathLike[str], *, dtype: Any = "float32", rope_factor: float | None = None
) -> tuple[LogitsDifference, ...]:
    """Our JAX model against the NumPy reference on one checkpoint; the model is loaded whole.

    A logit that is not finite is wrong, though both have it: no model is meant to compute one.
    """
    import jax

    from llama_jax.checkpoint import load
    from llama_jax.model.transformer import forward

    source = open_checkpoint(path, rope_factor=rope_factor)
    with _quiet():
        params = load(path, dtype=dtype).replace(config=source.config)
    tolerance = _TOLERANCES[parse_dtype(dtype).name]
    tokens, positions = probes(source.config)
    ours, _ = jax.jit(forward)(params, tokens, positions)
    expected = _reference(source, tokens, positions)
    found = _apart(positions, np.asarray(ours, np.float64), expected, tolerance)
    return tuple(
        dataclasses.replace(one, largest=math.inf) if any(one.not_finite) else one for one in found
    )


def probes(config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Fixed tokens and their positions, both [2, time]: a near row, and a far one.

    RoPE sees only distances, so a block of tokens far out shows what one at 0 does. The far row
    therefore spreads from 0 outwards, each step longer, up to position 100,000 or the model's
    last: between its tokens lie distances of every scale, and with them every wavelength of RoPE,
    among them those that only scaling changes. The near row is the first positions.
    """
    last = min(_FARTHEST, config.max_seq_len) - 1
    steps = np.geomspace(1, max(1, last), min(_TIME, config.max_seq_len) - 1)
    far = np.unique([0, *steps.round().astype(int)])
    positions = np.stack([np.arange(len(far)), far]).astype(np.int32)
    tokens = np.random.default_rng(0).integers(config.vocab_size, size=positions.shape)
    return tokens.astype(np.int32), positions


def _compare_logits(
    a: Source, b: Source, tensors: Sequence[TensorDifference]
) -> tuple[LogitsDifference, ...]:
    if a.config.vocab_size != b.config.vocab_size:
        return ()
    rounded = any((t.rounded or t.quantized) and t.differing for t in tensors)
    tokens, positions = probes(max(a.config, b.config, key=lambda config: config.max_seq_len))
    one, two = (_reference(source, tokens, positions) for source in (a, b))
    return _apart(positions, one, two, None if rounded else _EXACT)


def _reference(source: Source, tokens: np.ndarray, positions: np.ndarray) -> np.ndarray:
    with _quiet():
        return reference_logits(source.config, source.tensors, tokens, positions)


def _apart(
    positions: np.ndarray, ours: np.ndarray, expected: np.ndarray, tolerance: float | None
) -> tuple[LogitsDifference, ...]:
    """The differences of each row."""
    found = []
    for where, row, one, two in zip(("near", "far"), positions, ours, expected, strict=True):
        finite = np.isfinite(one), np.isfinite(two)
        alike = (one == two) | (np.isnan(one) & np.isnan(two))
        by = np.abs(
            np.subtract(one, two, where=finite[0] & finite[1], out=np.full_like(one, np.inf))
        )
        difference = LogitsDifference(
            where=where,
            positions=tuple(row.tolist()),
            largest=float(np.where(alike, 0, by).max()),
            scale=float(np.abs(two, where=finite[1], out=np.zeros_like(two)).max()),
            not_finite=(int((~finite[0]).sum()), int((~finite[1]).sum())),
            tolerance=tolerance,
        )
        found.append(difference)
    return tuple(found)
