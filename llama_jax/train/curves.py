"""A run's curves as a picture, drawn by matplotlib, which the extra `plot` installs."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

METRICS = "metrics.jsonl"


def read_metrics(run: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The lines of a run's `metrics.jsonl`; ValueError where the folder is no run."""
    file = Path(run) / METRICS
    if not file.is_file():
        folder = Path(run)
        wrong = f"has no {METRICS}" if folder.is_dir() else "is a file, not a run's folder"
        wrong = wrong if folder.exists() else "does not exist"
        raise ValueError(f"{run} {wrong}; name the folder of `llama-jax train --out`")
    lines = file.read_bytes().splitlines(keepends=True)
    # A run that is being written may have half a line at the end.
    found = [record_of(line, file, n) for n, line in enumerate(lines, 1) if line.endswith(b"\n")]
    if not found:
        raise ValueError(f"{file} is empty: the run has taken no step yet")
    return found


def record_of(line: bytes, file: Path, number: int) -> dict[str, Any]:
    """The record in a line of a run's metrics; ValueError names the line that is none."""
    with contextlib.suppress(ValueError, RecursionError):
        record = json.loads(line)
        if isinstance(record, dict) and type(record.get("step")) is int:
            return record
    raise ValueError(f"{file}, line {number} is no record of a run; take that line out")


def plot(run: str | os.PathLike[str], out: str | os.PathLike[str]) -> Path:
    """Writes the loss, the gradients' norm and the learning rate of a run by step, as a PNG.

    ValueError where matplotlib is not installed, the folder is no run, or `out` names another kind
    of picture.
    """
    if Path(out).suffix.lower() not in ("", ".png"):
        raise ValueError(f"the picture is a PNG, and out={out} does not end in .png")
    records = read_metrics(run)
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError(
            "curves are drawn by matplotlib, which is not installed; pip install matplotlib"
        ) from None
    figure = Figure(figsize=(8, 9), layout="constrained")
    loss, norm, rate = figure.subplots(3, 1, sharex=True)
    _draw(loss, records, "loss", "training")
    _draw(loss, records, "validation_loss", "validation")
    loss.set_ylabel("loss, nats a token")
    loss.legend()
    _draw(norm, records, "gradient_norm", "")
    norm.set_ylabel("norm of the gradients")
    norm.set_yscale("log")
    _draw(rate, records, "learning_rate", "")
    rate.set_ylabel("learning rate")
    rate.set_xlabel("step")
    # A folder's name may hold bytes that are no text in this locale, and dollars that are no math.
    name = os.fsencode(Path(run).resolve().name).decode(errors="replace")
    figure.suptitle(name, parse_math=False)
    figure.savefig(out, format="png", dpi=120)
    return Path(out)


def _draw(axes: Any, records: list[dict[str, Any]], name: str, label: str) -> None:
    points = [(record["step"], record[name]) for record in records if _is_number(record.get(name))]
    steps, values = zip(*points, strict=True) if points else ((), ())
    few = {"marker": "o"} if len(points) < 30 else {}  # a line between two points is no curve
    axes.plot(steps, values, label=label, linewidth=1, **few)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)
