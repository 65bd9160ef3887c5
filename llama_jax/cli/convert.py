"""`llama-jax convert`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llama_jax.cli import options
from llama_jax.cli.console import print_warnings, progress_bar, telling_of
from llama_jax.cli.description import model_rows, print_notes, print_rows

if TYPE_CHECKING:
    from llama_jax.checkpoint.convert import Conversion


def convert(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            help="A folder with a model: Meta's download, Hugging Face's, or ours; or a GGUF file",
        ),
    ],
    destination: options.Destination,
    dtype: options.StoredDtype = None,
    quantize: options.Quantize = None,
    max_seq_len: Annotated[
        int | None,
        typer.Option(metavar="N", help="Context length, in place of what the files say", min=1),
    ] = None,
    rope_factor: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="For Meta's files of Llama 3.1 and later, which do not say by how much RoPE is "
            "scaled: 8 in 3.1, 32 in 3.2 (1B, 3B), 1 for no scaling; default: by the model's size",
            min=1.0,
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a checkpoint at the destination")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Then compare what was written with what was read")
    ] = False,
) -> None:
    """Convert a checkpoint to the native format."""
    from llama_jax.checkpoint.convert import convert

    with progress_bar(f"converting {source.resolve().name}") as update:
        done = convert(
            source,
            destination,
            dtype=dtype,
            max_seq_len=max_seq_len,
            rope_factor=rope_factor,
            quantize=quantize,
            overwrite=overwrite,
            progress=update,
        )
    with telling_of(destination):
        _report(done, destination)
    if verify:
        from llama_jax.checkpoint.reading import open_checkpoint
        from llama_jax.cli.verify import verify_same

        verify_same(done.source, open_checkpoint(destination))


def _report(done: Conversion, destination: Path) -> None:
    """What a person wants to check of a conversion."""
    from llama_jax.checkpoint.files.messages import in_units
    from llama_jax.checkpoint.inspection import stored_name
    from llama_jax.checkpoint.origin import repository_of

    source, written = done.source, done.written
    repository = repository_of(source)
    rows = model_rows(source.config) | ({"from": repository} if repository else {})
    rows |= {
        "dtype": _dtypes(set(map(stored_name, source.tensors.values())), set(written.dtypes)),
        "tokenizer": str(source.tokenizer or "none found; the checkpoint takes token ids"),
        "written": f"{in_units(written.bytes)} in {written.seconds:.1f} s to {destination}",
    }
    print_rows(rows)
    print_notes(source.notes)
    print_warnings([*source.warnings, *written.warnings])


def _dtypes(before: set[str], after: set[str]) -> str:
    read, wrote = (" and ".join(sorted(names)) for names in (before, after))
    return read if read == wrote else f"{wrote}, from {read}"
