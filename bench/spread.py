"""Medians with their spread, and ratios of neighbours in time."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Spread:
    """The middle of some measurements, and the quartiles around it."""

    median: float
    low: float
    high: float

    def text(self, digits: int = 3) -> str:
        """`0.89 (0.87-0.91)`: three significant digits, the quartiles in brackets."""
        shown = [significant(value, digits) for value in (self.median, self.low, self.high)]
        return shown[0] if len(set(shown)) == 1 else f"{shown[0]} ({shown[1]}-{shown[2]})"


def spread_of(values: Sequence[float]) -> Spread:
    """The median and the quartiles of `values`; of a single one, that one three times."""
    if not values:
        raise ValueError("no values to take a median of; measure at least one round")
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, low, high)


def paired(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """How many times theirs ours is, round by round: what drifts with the machine cancels."""
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} rounds against {len(theirs)}; pairs need as many of both")
    return spread_of([one / other for one, other in zip(ours, theirs, strict=True)])


def significant(value: float, digits: int = 3) -> str:
    """A number with so many significant digits and no exponent: 0.0123, 1.23, 123, 1,230."""
    rounded = float(f"{value:.{digits - 1}e}")
    whole = len(str(int(abs(rounded)))) if abs(rounded) >= 1 else 0
    if whole:
        return f"{rounded:,.{max(0, digits - whole)}f}"
    leading = 0 if rounded == 0 else -int(f"{rounded:e}".split("e")[1]) - 1
    return f"{rounded:.{digits + leading}f}" if rounded else "0"
