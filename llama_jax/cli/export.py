"""`llama-jax export`."""

from __future__ import annotations

import dataclasses
import enum
from typing import Annotated

import typer

from llama_jax.cli import options
from llama_jax.cli.console import print_warnings, progress_bar, telling_of
from llama_jax.cli.description import model_rows, print_notes, print_rows
from llama_jax.cli.groups import grouped


class Format(enum.StrEnum):
    """The format to write: Hugging Face's, Meta's, llama.cpp's, or peft's."""

    hf = "hf"
    meta = "meta"
    gguf = "gguf"
    peft = "peft"


class Layout(enum.StrEnum):
    """Which of Meta's models to follow in cutting the embedding."""

    llama2 = "llama2"
    llama3 = "llama3"


@dataclasses.dataclass(frozen=True)
class Files:
    """What is in the files, where their format leaves a choice."""

    shards: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Number of weight files; default: hf 5 GB each, others one", min=1
        ),
    ] = None
    layout: Annotated[
        Layout | None,
        typer.Option(
            help="With --format meta: whose way of cutting the embedding over several files to "
            "follow; default: llama3 for a model with Llama 3's RoPE"
        ),
    ] = None
    base: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="With --format peft: the model's name at Hugging Face, or its folder, which peft "
            "will load the adapters onto",
        ),
    ] = None
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="DTYPE",
            help="Number format: float32, bfloat16 or float16, with --format gguf q8_0 or q4_0 "
            "too; default: as stored",
        ),
    ] = None


@grouped
def export(
    checkpoint: options.Checkpoint,
    destination: options.Destination,
    format: Annotated[
        Format,
        typer.Option(
            help="hf for transformers, meta for Meta's .pth, gguf for llama.cpp; peft for the "
            "adapters alone"
        ),
    ],
    *,
    files: Files,
    adapter: options.Adapter = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an older export at the destination")
    ] = False,
) -> None:
    """Write Hugging Face's, Meta's or GGUF files.

    A model with LoRA adapters is written with these merged, or its adapters alone as peft's.
    """
    from llama_jax.checkpoint.export import export
    from llama_jax.checkpoint.files.messages import in_units

    with progress_bar(f"exporting {checkpoint.resolve().name}") as update:
        done = export(
            checkpoint,
            destination,
            format=format.value,
            adapter=adapter,
            **vars(files) | {"layout": files.layout and files.layout.value},
            overwrite=overwrite,
            progress=update,
        )
    count = f"{len(done.files)} file{'s' if len(done.files) != 1 else ''}"
    size = f"{in_units(done.bytes)} in {count} in {done.seconds:.1f} s"
    rows = {"dtype": " and ".join(done.dtypes), "written": f"{size} to {destination}"}
    with telling_of(destination):
        print_rows({**model_rows(done.source.config), **rows})
        print_notes((*done.source.notes, *done.notes))
        print_warnings(done.warnings)
