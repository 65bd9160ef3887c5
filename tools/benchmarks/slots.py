"""Decode's cost per token against the slots in use: numbers, the line through them, a plot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contest import prompts
from benchmarks.models import Model
from benchmarks.workers import Worker

SLOTS = (256, 1024, 4096, 16384)
NEW = 16
LEFT = 64
"""Slots that a prompt leaves free, as many as `generate` wants: one token more, and the cache would
be twice as large."""


def costs(worker: Worker, model: Model, rounds: int, tell: Callable[[str], None]) -> dict[str, Any]:
    """Milliseconds a token where each number of slots is in use at the end, in alternation."""
    found: dict[int, list[float]] = {slots: [] for slots in SLOTS}
    for count in range(rounds + 1):
        for slots in SLOTS:
            [prompt] = prompts(model, slots - LEFT, 1)
            seconds = worker.ask("pace", prompt=prompt, new=NEW)["seconds"]
            if count:  # the first round compiles
                found[slots].append(1000 * seconds / (NEW - 1))
        tell(f"slots: round {count} of {rounds}" if count else "slots: compiled")
    line, off = line_through(found)
    return {"milliseconds": found, "line": line, "off_line": off}


def line_through(costs: dict[int, list[float]]) -> tuple[tuple[float, float], float]:
    """Start and slope of the straight line nearest the medians, and the farthest one's part off it.

    Nearest in proportion: a point counts by its distance as a part of itself.
    """
    slots = np.array(list(costs), float)
    cost = np.array([np.median(ms) for ms in costs.values()])
    rows = np.stack([np.ones_like(slots), slots], axis=1) / cost[:, None]
    (start, slope), *_ = np.linalg.lstsq(rows, np.ones_like(cost), rcond=None)
    off = np.max(np.abs((start + slope * slots) / cost - 1))
    return (float(start), float(slope)), float(off)


def plot(result: dict[str, Any], path: Path) -> None:
    """The points with their quartiles, and the line, as SVG: the same numbers, the same file."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "llama_jax"
    from matplotlib import pyplot

    slots = [int(count) for count in result["milliseconds"]]
    low, middle, high = np.percentile(list(result["milliseconds"].values()), [25, 50, 75], axis=1)
    start, slope = result["line"]
    figure, axes = pyplot.subplots(figsize=(6, 3.6))
    axes.errorbar(
        slots, middle, [middle - low, high - middle], fmt="o", capsize=3, label="measured"
    )
    ends = np.array([0, max(slots)])
    axes.plot(ends, start + slope * ends, linewidth=1, label="nearest line")
    axes.set(xlabel="slots in use", ylabel="ms a token", ylim=(0, None), xlim=(0, None))
    axes.set_title(f"Decode, batch 1, shape S, {result['dtype']}")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
