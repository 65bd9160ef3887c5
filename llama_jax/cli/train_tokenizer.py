"""`llama-jax train-tokenizer`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llama_jax.cli import options
from llama_jax.cli.console import progress_bar, telling_of
from llama_jax.cli.description import print_rows
from llama_jax.cli.text_input import argument, given_separator


def train_tokenizer(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE", help="Texts: .txt, .md, .jsonl or .parquet, in UTF-8"),
    ],
    vocab_size: Annotated[
        int, typer.Option(metavar="N", help="Tokens in all; LLaMA's has 32,000", min=260)
    ],
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="File to write, by custom tokenizer.model")
    ],
    separator: options.Separator = None,
    key: options.TextKey = "text",
    normalization: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="identity, as LLaMA's, or nmt_nfkc, which unifies spellings"
        ),
    ] = "identity",
    sample_megabytes: Annotated[
        int,
        typer.Option(
            metavar="N", help="Megabytes; of more text than this, lines are left out evenly", min=1
        ),
    ] = 1024,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a file that is there")
    ] = False,
) -> None:
    """Train a tokenizer with LLaMA's settings."""
    from llama_jax.checkpoint.files.messages import in_units
    from llama_jax.train.vocabulary import train_tokenizer

    with progress_bar("reading") as update:
        done = train_tokenizer(
            files,
            out,
            vocab_size=vocab_size,
            separator=given_separator(separator),
            key=argument(key, "--key"),
            normalization=normalization,
            sample_bytes=sample_megabytes * 2**20,
            overwrite=overwrite,
            progress=update,
        )
    lines = "all lines" if done.sampled == 1 else f"{done.sampled:.1%} of the lines"
    size = in_units(out.stat().st_size)
    with telling_of(out):
        print_rows(
            {
                "vocabulary": f"{done.vocab_size:,} tokens, from {lines}",
                "written": f"{size} in {done.seconds:.1f} s to {out}",
            }
        )
