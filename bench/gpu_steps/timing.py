"""Times of work on a device: warm, many times, the middle and how far they spread."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

Times = dict[str, float]


def timed(
    run: Callable[[], Any],
    *,
    repeats: int,
    warm: int = 1,
    before: Callable[[], Any] = lambda: None,
) -> Times:
    """Seconds of `run`, which waits for the device itself; the first `warm` times do not count.

    `before` is called before each, and its time does not count either.
    """
    took = []
    for _ in range(warm + repeats):
        before()
        start = time.perf_counter()
        run()
        took.append(time.perf_counter() - start)
    return spread(took[warm:])


def spread(took: Sequence[float]) -> Times:
    """The median of some times, and the least and the most."""
    return {"median": statistics.median(took), "min": min(took), "max": max(took)}
