"""`llama-jax tokenize`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llama_jax.cli import options
from llama_jax.cli.console import UsageError, progress_bar, telling_of
from llama_jax.cli.description import print_rows
from llama_jax.cli.groups import grouped
from llama_jax.cli.text_input import argument, given_separator

if TYPE_CHECKING:
    from llama_jax.train.tokens import Tokenized


@dataclasses.dataclass(frozen=True)
class Texts:
    """How texts lie in the files."""

    separator: options.Separator = None
    key: options.TextKey = "text"
    threads: Annotated[
        int | None,
        typer.Option(metavar="N", help="Texts encoded at once; default: one a processor", min=1),
    ] = None

    def read(self) -> dict[str, Any]:
        """The same, whatever the locale made of the texts."""
        separator = given_separator(self.separator)
        return {"separator": separator, "key": argument(self.key, "--key"), "threads": self.threads}


@dataclasses.dataclass(frozen=True)
class Dialogs:
    """Dialogs in place of texts."""

    dialogs: Annotated[
        bool,
        typer.Option("--dialogs", help="The files are dialogs: the assistant's part is trained"),
    ] = False
    context: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="With --dialogs: tokens of a row, into which they are packed", min=1
        ),
    ] = None
    drop_long: Annotated[
        bool,
        typer.Option("--drop-long", help="With --dialogs: leave out what is longer than a row"),
    ] = False


@grouped
def tokenize(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE", help="Texts: .txt, .md, .jsonl or .parquet, in UTF-8; dialogs: .jsonl"
        ),
    ],
    tokenizer: Annotated[
        Path,
        typer.Option(
            metavar="PATH",
            help="The model's tokenizer: its file, or a checkpoint, by its directory or its name",
        ),
    ],
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Directory to write: a new or an empty one")
    ],
    *,
    texts: Texts,
    validation_every: Annotated[
        int,
        typer.Option(
            metavar="N", help="Every N-th document is for validation, N at least 2; 0: none", min=0
        ),
    ] = 100,
    validation: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="A file for validation, in place of that; may be repeated",
        ),
    ] = None,
    dialogs: Dialogs,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a folder of tokens that is there")
    ] = False,
) -> None:
    """Turn texts or dialogs into tokens to train on."""
    from llama_jax.checkpoint.named import find_checkpoint
    from llama_jax.train.dialog_tokens import tokenize_dialogs
    from llama_jax.train.tokens import tokenize

    tokenizer = find_checkpoint(tokenizer)
    with progress_bar("tokenizing") as update:
        common: dict[str, Any] = {
            "validation_every": validation_every,
            "validation_files": validation or (),
            "overwrite": overwrite,
            "progress": update,
        }
        if _are_dialogs(texts, dialogs):
            more: dict[str, Any] = {"context": dialogs.context, "drop_long": dialogs.drop_long}
            done = tokenize_dialogs(files, tokenizer, out, **more, **common)
        else:
            done = tokenize(files, tokenizer, out, **texts.read(), **common)
    _report(
        done,
        ("dialog", "longer than a row") if dialogs.dialogs else ("document", "without text"),
        out,
    )


def _report(done: Tokenized, left_out: tuple[str, str], out: Path) -> None:
    """Prints what was written; `left_out` is what the others are, and why they are left out."""
    from llama_jax.checkpoint.files.messages import in_units

    rows = {name: _told(split) for name, split in done.splits.items()}
    if done.left_out:
        what, why = left_out
        rows["left out"] = f"{done.left_out:,} {what}{'s' * (done.left_out != 1)} {why}"
    size = sum(shard["bytes"] for split in done.splits.values() for shard in split["shards"])
    with telling_of(out):
        print_rows({**rows, "written": f"{in_units(size)} in {done.seconds:.1f} s to {out}"})


def _are_dialogs(texts: Texts, dialogs: Dialogs) -> bool:
    """Whether the files are dialogs; ValueError for options of the other kind."""
    if dialogs.dialogs:
        if dialogs.context is None:
            raise UsageError("--dialogs needs --context, the tokens of a row")
        if texts != Texts():
            raise UsageError("--separator, --key and --threads are for texts; leave them out")
    elif dialogs != Dialogs():
        raise UsageError("--context and --drop-long are for --dialogs; text is cut anywhere")
    return dialogs.dialogs


def _told(split: Mapping[str, Any]) -> str:
    what = "dialog" if "packed" in split else "document"
    several = "s" * (split["documents"] != 1)
    counts = f"{split['tokens']:,} tokens of {split['documents']:,} {what}{several}"
    if "packed" not in split:
        return f"{counts}, {split['text_bytes'] / split['tokens']:.2f} bytes a token"
    packed = split["packed"]
    full = split["tokens"] / (packed["rows"] * packed["time"])
    return (
        f"{counts}, {packed['trained_tokens']:,} of them trained, in {packed['rows']:,} "
        f"row{'s' * (packed['rows'] != 1)}, {full:.1%} full"
    )
