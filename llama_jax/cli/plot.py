"""`llama-jax plot`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llama_jax.cli.console import telling_of


def plot(
    run: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="A run's folder, as `llama-jax train --out` made it"),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="The picture, a PNG; default: curves.png in the run's folder"
        ),
    ] = None,
) -> None:
    """Draw a run's loss, gradients' norm and learning rate.

    Needs matplotlib: pip install matplotlib.
    """
    from llama_jax.train.curves import plot

    written = plot(run, out or run / "curves.png")
    with telling_of(written):
        print(written)
