"""`llama-jax verify`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from llama_jax.cli.console import plain_errors, progress_bar, status

if TYPE_CHECKING:
    from llama_jax.checkpoint.source import Source
    from llama_jax.checkpoint.verify import Comparison, LogitsDifference
    from llama_jax.checkpoint.verify.differences import TensorDifference

DIFFERENT, BROKEN = 1, 2
"""Exit codes."""
_SHOWN = 8


def verify(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint of any format")],
    other: Annotated[
        Path | None, typer.Argument(help="Another that should be the same model, of any format")
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="Without another: the dtype in which our model runs")
    ] = "float32",
) -> None:
    """Compare two checkpoints, or our model on one with a plain NumPy forward in float64.

    Exits with 0 where they are the same, 1 where they differ, 2 where one cannot be read.
    """
    with plain_errors(exit_code=BROKEN):
        if other is None:
            _verify_model(checkpoint, dtype)
            return
        from llama_jax.checkpoint.reading import open_checkpoint

        verify_same(open_checkpoint(checkpoint), open_checkpoint(other))


def verify_same(a: Source, b: Source) -> None:
    """Compares two opened checkpoints, prints what was found, and exits with 1 if they differ."""
    from llama_jax.checkpoint.verify import compare

    with progress_bar(f"comparing {a.path} and {b.path}") as update:
        found = compare(a, b, update)
    console = _console()
    _print_fields(console, found)
    _print_dtypes(console, found.tensors)
    console.print(_tensor_table(found.tensors))
    for line in found.unmatched[:_SHOWN]:
        console.print(f"  {line}", style="red", markup=False)
    if (more := len(found.unmatched) - _SHOWN) > 0:
        console.print(f"  and {more} more tensors that only one has, or in another shape")
    if found.logits:
        console.print(_logits_table(found.logits))
    for line in found.suspicions:
        console.print(f"  {line}", style="yellow", markup=False)
    _conclude(console, found.same, "one model in both", "the two are NOT the same model")


def _verify_model(checkpoint: Path, dtype: str) -> None:
    from llama_jax.checkpoint.verify import compare_with_model

    with status(f"running {checkpoint} in JAX and in NumPy"):
        logits = compare_with_model(checkpoint, dtype=dtype)
    console = _console()
    console.print(_logits_table(logits))
    same = all(one.same for one in logits)
    _conclude(console, same, "the model computes what it should", "the model computes WRONGLY")


def _console() -> Console:
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = 160  # a file has no edge at which to cut a table
    return console


def _conclude(console: Console, same: bool, good: str, bad: str) -> None:
    console.print(good if same else bad, style="green" if same else "red")
    if not same:
        raise typer.Exit(DIFFERENT)


def _print_fields(console: Console, found: Comparison) -> None:
    if not found.fields:
        console.print("the configs are equal")
    for field in found.fields:
        one, two = field.values
        rest = "" if field.matters else ", which no number depends on"
        console.print(
            f"  {field.name}: {one} and {two}{rest}", style="red" if field.matters else ""
        )


def _print_dtypes(console: Console, tensors: Sequence[TensorDifference]) -> None:
    changed = sorted({t.dtypes for t in tensors if t.dtypes[0] != t.dtypes[1]})
    for one, two in changed:
        console.print(f"{one} and {two} tensors are compared in float32")


def _tensor_table(tensors: Sequence[TensorDifference]) -> Table:
    """A row a kind of tensor: one for the wq of all layers."""
    kinds: dict[str, list[TensorDifference]] = {}
    for tensor in tensors:
        kinds.setdefault(_kind(tensor), []).append(tensor)
    table = _table("tensors", "count", "same", "differing", "by", "relative", "worst in")
    for kind, members in kinds.items():
        worst = max(members, key=lambda t: (not t.same, t.largest, t.differing))
        told = (
            f"{sum(t.differing for t in members):,}",
            f"{worst.largest:.2e}",
            f"{worst.relative:.2e}",
            worst.path[0],
        )
        style = "" if worst.same else "red"
        count = str(len(members))
        table.add_row(kind, count, _same(members), *(told if worst.differing else ()), style=style)
    return table


def _kind(tensor: TensorDifference) -> str:
    layered = tensor.path[0].startswith("layers_")
    return ".".join(tensor.path[1:] if layered else tensor.path)


def _same(members: Sequence[TensorDifference]) -> str:
    """How many are the same, bit for bit or after a cast to another dtype."""
    count = sum(t.same for t in members)
    rounded = any(t.same and t.differing for t in members)
    return ("all" if count == len(members) else str(count)) + (", rounded" if rounded else "")


def _logits_table(logits: Iterable[LogitsDifference]) -> Table:
    table = _table("logits", "positions", "apart by", "largest", "allowed", "")
    for one in logits:
        table.add_row(
            one.where,
            _positions(one.positions),
            f"{one.largest:.2e}",
            f"{one.scale:.2e}",
            "" if one.tolerance is None else f"{one.tolerance * one.scale:.2e}",
            _verdict(one),
            style="" if one.same else "red",
        )
    return table


def _verdict(one: LogitsDifference) -> str:
    if one.tolerance is None:
        return "by rounding"
    return "same" if one.same else "DIFFERENT"


def _positions(positions: Sequence[int]) -> str:
    if positions[-1] == len(positions) - 1:
        return f"0 to {positions[-1]}"
    return f"{len(positions)} from 0 to {positions[-1]:,}"


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, no_wrap=True)
    return table
