"""`llama-jax verify`."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    rope_factor: Annotated[
        float | None,
        typer.Option(help="Of Llama 3.1's RoPE scaling, for Meta's files alone; 1 is none"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object")] = False,
) -> None:
    """Compare two checkpoints, or our model on one with a plain NumPy forward in float64.

    Exits with 0 where they are the same, 1 where they differ, 2 where one cannot be read.
    """
    with plain_errors(exit_code=BROKEN):
        from llama_jax.checkpoint.reading import open_checkpoint

        factors = _factors([checkpoint] if other is None else [checkpoint, other], rope_factor)
        if other is None:
            _verify_model(checkpoint, dtype, factors[0], as_json)
            return
        a, b = (
            open_checkpoint(path, rope_factor=factor)
            for path, factor in zip((checkpoint, other), factors, strict=True)
        )
        verify_same(a, b, as_json=as_json)


def verify_same(a: Source, b: Source, *, as_json: bool = False) -> None:
    """Compares two opened checkpoints, prints what was found, and exits with 1 if they differ."""
    from llama_jax.checkpoint.verify import compare

    with progress_bar(f"comparing {a.path} and {b.path}") as update:
        found = compare(a, b, update)
    if as_json:
        _print_json(_of_comparison(found))
    else:
        _print_comparison(found)
    if not found.same:
        raise typer.Exit(DIFFERENT)


def _factors(paths: Sequence[Path], rope_factor: float | None) -> list[float | None]:
    """The RoPE factor with which to open each: the one asked for, if it is Meta's."""
    from llama_jax.checkpoint import native
    from llama_jax.checkpoint.meta import is_meta

    theirs = [is_meta(path) and not native.is_native(path) for path in paths]
    if rope_factor is not None and not any(theirs):
        raise ValueError(
            f"--rope-factor {rope_factor:g} is for Meta's files, whose params.json does not say "
            f"it, and {' and '.join(map(str, paths))} are not Meta's; leave it out"
        )
    return [rope_factor if meta else None for meta in theirs]


def _verify_model(checkpoint: Path, dtype: str, rope_factor: float | None, as_json: bool) -> None:
    from llama_jax.checkpoint.verify import compare_with_model

    with contextlib.nullcontext() if as_json else status(f"running {checkpoint} in JAX and NumPy"):
        logits = compare_with_model(checkpoint, dtype=dtype, rope_factor=rope_factor)
    same = all(one.same for one in logits)
    if as_json:
        _print_json(
            {
                "same": same,
                "checkpoint": str(checkpoint),
                "dtype": dtype,
                "logits": [_of_logits(one) for one in logits],
            }
        )
    else:
        console = _console()
        console.print(_logits_table(logits))
        _print_not_finite(console, logits, (f"our model in {dtype}", "the NumPy model"))
        good, bad = "the model computes what it should", "the model computes WRONGLY"
        console.print(good if same else bad, style="green" if same else "red")
    if not same:
        raise typer.Exit(DIFFERENT)


def _console() -> Console:
    console = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = 160  # a file has no edge at which to cut a table
    return console


def _print_comparison(found: Comparison) -> None:
    console = _console()
    _print_fields(console, found)
    _print_dtypes(console, found.tensors)
    console.print(_tensor_table(found.tensors))
    for tensor in [tensor for tensor in found.tensors if any(tensor.not_finite)][:_SHOWN]:
        one, two = tensor.not_finite
        console.print(
            f"  {'.'.join(tensor.path)} holds NaN or infinity: {one:,} in the first, "
            f"{two:,} in the second",
            style="yellow" if tensor.same else "red",
        )
    for line in found.unmatched[:_SHOWN]:
        console.print(f"  {line}", style="red")
    if (more := len(found.unmatched) - _SHOWN) > 0:
        console.print(f"  and {more} more tensors that only one has, or in another shape")
    if found.logits:
        console.print(_logits_table(found.logits))
        _print_not_finite(console, found.logits, ("the first", "the second"))
    for line in found.suspicions:
        console.print(f"  {line}", style="yellow")
    good, bad = "one model in both", "the two are NOT the same model"
    console.print(good if found.same else bad, style="green" if found.same else "red")


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
        console.print(
            f"{one} and {two} tensors are compared in float32; "
            '"rounded": one, cast to the dtype of the other, is the other'
        )


def _print_not_finite(
    console: Console, logits: Iterable[LogitsDifference], names: tuple[str, str]
) -> None:
    for one in logits:
        if any(one.not_finite):
            counts = " and ".join(
                f"{count:,} of {name}" for count, name in zip(one.not_finite, names, strict=True)
            )
            console.print(
                f"  {one.where} logits that are NaN or infinite: {counts}",
                style="yellow" if one.same else "red",
            )


def _tensor_table(tensors: Sequence[TensorDifference]) -> Table:
    """A row a kind of tensor: one for the wq of all layers."""
    kinds: dict[str, list[TensorDifference]] = {}
    for tensor in tensors:
        kinds.setdefault(_kind(tensor), []).append(tensor)
    numbers = "numbers differing", "largest difference", "as a share of the number"
    table = _table("tensors", "count", "same", *numbers, "worst in")
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
    numbers = "largest difference", "difference allowed", "largest logit"
    table = _table("logits", "positions", *numbers, "verdict")
    for one in logits:
        table.add_row(
            one.where,
            _positions(one.positions),
            f"{one.largest:.2e}",
            "any" if one.tolerance is None else f"{one.tolerance * one.scale:.2e}",
            f"{one.scale:.2e}",
            _verdict(one),
            style="" if one.same else "red",
        )
    return table


def _verdict(one: LogitsDifference) -> str:
    if not one.same:
        return "DIFFERENT"
    return "by rounding" if one.tolerance is None else "same"


def _positions(positions: Sequence[int]) -> str:
    if positions[-1] == len(positions) - 1:
        return f"0 to {positions[-1]}"
    return f"{len(positions)} from 0 to {positions[-1]:,}"


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, no_wrap=True)
    return table


def _print_json(found: dict[str, Any]) -> None:
    """Infinity and NaN, which JSON has not, become null."""
    print(json.dumps(_plain(found), indent=2, default=str))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _of_comparison(found: Comparison) -> dict[str, Any]:
    return {
        "same": found.same,
        "checkpoints": [str(found.a.path), str(found.b.path)],
        "fields": [
            {**dataclasses.asdict(field), "matters": field.matters} for field in found.fields
        ],
        "tensors": [
            {**dataclasses.asdict(tensor), "path": ".".join(tensor.path), "same": tensor.same}
            for tensor in found.tensors
        ],
        "unmatched": found.unmatched,
        "logits": [_of_logits(one) for one in found.logits],
        "suspicions": found.suspicions,
    }


def _of_logits(one: LogitsDifference) -> dict[str, Any]:
    return {**dataclasses.asdict(one), "same": one.same}
