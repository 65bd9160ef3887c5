"""What `llama-jax verify` found, in tables for people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from llama_jax.verify.compare import Comparison, LogitsDifference
    from llama_jax.verify.differences import TensorDifference

_SHOWN = 8


def print_comparison(found: Comparison) -> None:
    """What two checkpoints have in common and what not: fields, tensors, logits, the verdict."""
    console = _console()
    _print_fields(console, found)
    _print_dtypes(console, found.tensors)
    if found.tensors:
        console.print(tensor_table(found.tensors))
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
        console.print(logits_table(found.logits))
        _print_not_finite(console, found.logits, ("the first", "the second"))
    for line in found.suspicions:
        console.print(f"  {line}", style="yellow")
    good, bad = "one model in both", "the two are NOT the same model"
    _print_verdict(console, found.same, good, bad)


def print_model(logits: Sequence[LogitsDifference], dtype: str) -> None:
    """How near our model's logits, in a dtype, are to the NumPy model's, and the verdict."""
    console = _console()
    console.print(logits_table(logits))
    _print_not_finite(console, logits, (f"our model in {dtype}", "the NumPy model"))
    good, bad = "the model computes what it should", "the model computes WRONGLY"
    _print_verdict(console, all(one.same for one in logits), good, bad)


def _console() -> Console:
    console = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = 160  # a file has no edge at which to cut a table
    return console


def _print_verdict(console: Console, same: bool, good: str, bad: str) -> None:
    console.print(good if same else bad, style="green" if same else "red")


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
    kinds = sorted({kind for t in tensors for kind in t.kinds if kind})
    if kinds:
        console.print(
            f"{' and '.join(kinds)} tensors are compared as the numbers that they stand for; "
            '"mean error": the root mean square of the differences, as a share of the first\'s own'
        )
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


def tensor_table(tensors: Sequence[TensorDifference]) -> Table:
    """A row a kind of tensor: one for the wq of all layers."""
    kinds: dict[str, list[TensorDifference]] = {}
    for tensor in tensors:
        kinds.setdefault(_kind(tensor), []).append(tensor)
    titles = "tensors", "count", "same", "numbers differing", "largest gap"
    rows, styles = [], []
    for kind, members in kinds.items():
        worst = max(members, key=lambda t: (not t.same, t.largest, t.differing))
        many = f"{sum(t.differing for t in members):,}"
        told = (many, f"{worst.largest:.2e}", *_share(worst), _layer(worst))
        rows.append([kind, str(len(members)), _same(members), *(told if worst.differing else ())])
        styles.append("" if worst.same else "red")
    return _table((*titles, "relative gap", "mean error", "worst in"), rows, styles)


def _share(tensor: TensorDifference) -> tuple[str, str]:
    """The largest gap in proportion, or, of a tensor that is read from few bits, the mean error."""
    if any(tensor.kinds):
        return "", f"{tensor.error:.2e}"
    return f"{tensor.relative:.2e}", ""


def _layer(tensor: TensorDifference) -> str:
    return tensor.path[0] if tensor.path[0].startswith("layers_") else ""


def _kind(tensor: TensorDifference) -> str:
    layered = tensor.path[0].startswith("layers_")
    return ".".join(tensor.path[1:] if layered else tensor.path)


def _same(members: Sequence[TensorDifference]) -> str:
    """How many are the same, bit for bit or after a cast to another dtype."""
    count = sum(t.same for t in members)
    notes = {
        ", quantized" if t.quantized and not t.rounded else ", rounded"
        for t in members
        if t.same and t.differing
    }
    return ("all" if count == len(members) else str(count)) + "".join(sorted(notes))


def logits_table(logits: Sequence[LogitsDifference]) -> Table:
    """A row a text: how far its logits lie apart."""
    numbers = "largest difference", "difference allowed", "largest logit"
    rows = [
        [
            one.where,
            _positions(one.positions),
            f"{one.largest:.2e}",
            "any" if one.tolerance is None else f"{one.tolerance * one.scale:.2e}",
            f"{one.scale:.2e}",
            _verdict(one),
        ]
        for one in logits
    ]
    styles = ["" if one.same else "red" for one in logits]
    return _table(("logits", "positions", *numbers, "verdict"), rows, styles)


def _verdict(one: LogitsDifference) -> str:
    if not one.same:
        return "DIFFERENT"
    return "by rounding" if one.tolerance is None else "same"


def _positions(positions: Sequence[int]) -> str:
    if positions[-1] == len(positions) - 1:
        return f"0 to {positions[-1]}"
    return f"{len(positions)} from 0 to {positions[-1]:,}"


def _table(titles: Sequence[str], rows: Sequence[list[str]], styles: Sequence[str]) -> Table:
    """A table without the columns in which nothing stands: it fits a terminal of 80 columns.

    A title takes a line a word, and of the cells only those of several words take more than one.
    """
    full = [row + [""] * (len(titles) - len(row)) for row in rows]
    kept = [n for n in range(len(titles)) if any(row[n] for row in full)]
    table = Table(box=None, pad_edge=False, collapse_padding=True)
    for n in kept:
        table.add_column(
            titles[n].replace(" ", "\n"),
            no_wrap=not any(" " in row[n] for row in full),
            vertical="bottom",
        )
    for row, style in zip(full, styles, strict=True):
        table.add_row(*(row[n] for n in kept), style=style)
    return table
