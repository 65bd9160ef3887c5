"""What was measured, as tables and as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.entrants import OURS
from bench.spread import paired, spread_of
from llama_jax.checkpoint.published import parameter_count
from llama_jax.config import Config

PUBLISHED = 1.88
"""nanoGPT's validation loss by its recipe for a CPU, as its README has it."""


def speed_table(name: str, one: dict[str, Any]) -> str:
    """A row for each contestant: tokens a second, and how many times that is ours."""
    lines = [
        f"\n**{name}** ({_millions(one)}, {one['batch']} x {one['time']}, float32, "
        f"{one['threads']} cores), tokens a second: median (quartiles) of {_rounds(one)} rounds\n",
        f"| | tokens/s | {OURS} / it |",
        "|---|---|---|",
    ]
    for who, rates in one["rates"].items():
        over = "" if who == OURS else paired(one["rates"][OURS], rates).text()
        lines.append(f"| {who} | {spread_of(rates).text()} | {over} |")
    lines += [f"\n{who} did not take part: {why}" for who, why in one["failed"].items()]
    return "\n".join(lines)


def curve_table(one: dict[str, Any]) -> str:
    """A row for each contestant: the validation loss at the end and on the way, and the time."""
    curves = one["curves"]
    steps = [point["step"] for point in curves[OURS]]
    shown = sorted({steps[len(steps) // 4], steps[len(steps) // 2], steps[-1]})
    heads = [f"validation at step {step:,}" for step in shown]
    lines = [
        f"\n**nanoGPT's recipe for a CPU** ({_millions(one)}, {one['tokens']:,} tokens, float32; "
        f"nanoGPT publishes {PUBLISHED})\n",
        f"| | {' | '.join(heads)} | seconds of training | it / {OURS} |",
        "|---" * (len(heads) + 3) + "|",
    ]
    for who, points in curves.items():
        losses = [f"{p['validation_loss']:.4f}" for p in points if p["step"] in shown]
        seconds = points[-1]["seconds"]
        over = "" if who == OURS else f"{seconds / curves[OURS][-1]['seconds']:.2f}"
        lines.append(f"| {who} | {' | '.join(losses)} | {seconds:,.1f} | {over} |")
    lines += [f"\n{who} did not take part: {why}" for who, why in one["failed"].items()]
    return "\n".join([*lines, "\nThe seconds of the first round hold our compiling."])


def draw(one: dict[str, Any], file: Path) -> None:
    """The validation losses by step and by seconds, as an SVG."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams["svg.hashsalt"] = "llama_jax"  # the same file from the same numbers
    figure = Figure(figsize=(9, 4), layout="constrained")
    for axes, by in zip(figure.subplots(1, 2, sharey=True), ("step", "seconds"), strict=True):
        for who, points in one["curves"].items():
            places = [point[by] for point in points]
            axes.plot(places, [point["validation_loss"] for point in points], label=who, marker=".")
        axes.axhline(PUBLISHED, color="grey", linestyle=":", label=f"nanoGPT publishes {PUBLISHED}")
        axes.set_xlabel(by)
    axes.legend()
    figure.axes[0].set_ylabel("validation loss, nats a character")
    figure.savefig(file, format="svg", metadata={"Date": None})


def _rounds(one: dict[str, Any]) -> int:
    return len(one["rates"][OURS])


def _millions(one: dict[str, Any]) -> str:
    return f"{parameter_count(Config.from_json(one['config'])) / 1e6:,.1f}M parameters"
