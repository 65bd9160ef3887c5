"""`llama-jax merge`."""

from __future__ import annotations

from typing import Annotated

import typer

from llama_jax.cli import options
from llama_jax.cli.console import print_warnings, progress_bar, telling_of
from llama_jax.cli.description import model_rows, print_notes, print_rows


def merge(
    checkpoint: options.Checkpoint,
    destination: options.Destination,
    adapter: options.Adapter = None,
    dtype: options.StoredDtype = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a checkpoint at the destination")
    ] = False,
) -> None:
    """Add LoRA adapters into a model's weights.

    The adapters are those that a training run left in the checkpoint, or those of --adapter. Each
    sum is rounded once, to the dtype that is written, and how much that loses is said.
    """
    from llama_jax.checkpoint.files.messages import in_units
    from llama_jax.checkpoint.merge import merge_checkpoint

    with progress_bar(f"merging {checkpoint.resolve().name}") as update:
        done = merge_checkpoint(
            checkpoint,
            destination,
            adapter=adapter,
            dtype=dtype,
            overwrite=overwrite,
            progress=update,
        )
    written = done.written
    rows = {
        "dtype": " and ".join(written.dtypes),
        "merged": f"adapters of {done.adapted} weights; {done.rounding}",
        "written": f"{in_units(written.bytes)} in {written.seconds:.1f} s to {destination}",
    }
    with telling_of(destination):
        print_rows({**model_rows(done.source.config), **rows})
        print_notes(done.source.notes)
        print_warnings([*done.source.warnings, *written.warnings])
