"""Decode's cost per token against the slots in use: numbers, the line through them, a plot."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bench.effort import prompts
from bench.models import Model
from bench.workers import Worker
from llama_jax.generation.limits import HEADROOM, initial_slots

SLOTS = (256, 1024, 4096, 16384)
"""In use at the end, in caches of as many, which one more token would double."""
JUST_PAST = (300, 1100, 4200)
"""In use at the end, in a cache that has doubled not long before."""
NEW = HEADROOM
"""Tokens decoded: as many as a cache has room for beyond the prompt that it was chosen for."""


def costs(
    worker: Worker, model: Model, rounds: int, tell: Callable[[str], None]
) -> Iterator[dict[str, Any]]:
    """Milliseconds a token where each number of slots is in use at the end; all, after each round.

    The lengths alternate. The first round, which compiles, does not count. The line is that of the
    full caches.
    """
    lengths = {slots: slots - NEW for slots in (*SLOTS, *JUST_PAST)}
    found: dict[int, list[float]] = {slots: [] for slots in lengths}
    for count in range(rounds + 1):
        for slots, length in lengths.items():
            [prompt] = prompts(model, length, 1)
            seconds = worker.ask("pace", prompt=prompt, new=NEW)["seconds"]
            found[slots] = [*found[slots], 1000 * seconds / (NEW - 1)] if count else []
        tell(f"slots: round {count} of {rounds}" if count else "slots: compiled")
        if not count:
            continue
        full = {slots: found[slots] for slots in SLOTS}
        sizes = {
            slots: initial_slots(lengths[slots], model.config.max_seq_len) for slots in JUST_PAST
        }
        past = {slots: (sizes[slots], found[slots]) for slots in JUST_PAST}
        line, off = line_through(full)
        measured = {"milliseconds": full, "just_past": past, "line": line, "off_line": off}
        yield {"model": model.name, "config": model.config.to_json(), **measured}


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

    full, start, slope = result["milliseconds"], *result["line"]
    past = {slots: ms for slots, (_, ms) in result["just_past"].items()}
    figure, axes = pyplot.subplots(figsize=(6, 3.6))
    for points, marker, label in (
        (full, "o", "full cache"),
        (past, "s", "just past a doubling"),
    ):
        low, middle, high = np.percentile(list(points.values()), [25, 50, 75], axis=1)
        spread = [middle - low, high - middle]
        axes.errorbar(list(map(int, points)), middle, spread, fmt=marker, capsize=3, label=label)
    ends = np.array([0, max(map(int, full))])
    axes.plot(ends, start + slope * ends, linewidth=1, label="line through full caches")
    axes.set(xlabel="slots in use", ylabel="ms a token", ylim=(0, None), xlim=(0, None))
    axes.set_title(f"Decode, batch 1, {result['model']}, {result['dtype']}")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
