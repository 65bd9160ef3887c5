"""`llama-jax verify`."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llama_jax.cli import options
from llama_jax.cli.comparison import print_comparison, print_model
from llama_jax.cli.console import print_json, progress_bar, status

if TYPE_CHECKING:
    from llama_jax.checkpoint.source import Source
    from llama_jax.verify.compare import Comparison, LogitsDifference

DIFFERENT = 1
"""Exit code, as diff(1) has it."""


def verify(
    checkpoint: options.Checkpoint,
    other: Annotated[
        Path | None,
        typer.Argument(
            metavar="OTHER", help="Another that should be the same model, of any format"
        ),
    ] = None,
    dtype: Annotated[
        str,
        typer.Option(
            metavar="DTYPE",
            help="With one checkpoint: the number format our model runs in, float32, bfloat16 or "
            "float16",
        ),
    ] = "float32",
    rope_factor: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="For Meta's files of Llama 3.1 and later, which do not say by how much RoPE is "
            "scaled: 8 in 3.1, 32 in 3.2 (1B, 3B), 1 for no scaling; default: by the model's size",
            min=1.0,
        ),
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Compare two checkpoints, or one with a NumPy model.

    One alone is run by our model and by a plain forward pass in float64, and the logits compared.
    Exit codes, as diff has them: 0 they are the same, 1 they differ, 2 one cannot be read or what
    was typed is wrong.
    """
    from llama_jax.checkpoint.reading import open_checkpoint

    factors = _factors([checkpoint] if other is None else [checkpoint, other], rope_factor)
    if other is None:
        _verify_model(checkpoint, dtype, factors[0], as_json)
        return
    a, b = (
        open_checkpoint(path, rope_factor=factor)
        for path, factor in zip((checkpoint, other), factors, strict=True)
    )
    for source in (a, b):
        source.check_sums()
    verify_same(a, b, as_json=as_json)


def verify_same(a: Source, b: Source, *, as_json: bool = False) -> None:
    """Compares two opened checkpoints, prints what was found, and exits with 1 if they differ."""
    from llama_jax.verify.compare import compare

    with progress_bar("comparing") as update:
        found = compare(a, b, update)
    if as_json:
        print_json(_of_comparison(found), indent=2)
    else:
        print_comparison(found)
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
    from llama_jax.verify.compare import compare_with_model

    with contextlib.nullcontext() if as_json else status(f"running {checkpoint} in JAX and NumPy"):
        logits = compare_with_model(checkpoint, dtype=dtype, rope_factor=rope_factor)
    same = all(one.same for one in logits)
    if as_json:
        print_json(
            {
                "same": same,
                "checkpoint": str(checkpoint),
                "dtype": dtype,
                "logits": [_of_logits(one) for one in logits],
            },
            indent=2,
        )
    else:
        print_model(logits, dtype)
    if not same:
        raise typer.Exit(DIFFERENT)


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
