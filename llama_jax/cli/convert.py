"""`llama-jax convert`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llama_jax.cli.console import plain_errors, progress_bar, stderr

if TYPE_CHECKING:
    from llama_jax.checkpoint.convert import Conversion
    from llama_jax.config import Config


def convert(
    source: Annotated[Path, typer.Argument(help="Directory with params.json, consolidated.*.pth")],
    destination: Annotated[Path, typer.Argument(help="Directory to write; must not exist")],
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16; default: as stored")
    ] = None,
    max_seq_len: Annotated[
        int | None, typer.Option(help="Context length, which Meta's files do not say", min=1)
    ] = None,
    rope_factor: Annotated[
        float | None, typer.Option(help="Factor of Llama 3.1's RoPE scaling (3.1: 8, 3.2: 32)")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a checkpoint at the destination")
    ] = False,
) -> None:
    """Convert Meta's checkpoint to a native one, ready for `llama_jax.load`."""
    from llama_jax.checkpoint.convert import convert

    with plain_errors(), progress_bar(f"converting {source}") as update:
        done = convert(
            source,
            destination,
            dtype=dtype,
            max_seq_len=max_seq_len,
            rope_factor=rope_factor,
            overwrite=overwrite,
            progress=update,
        )
    _report(done, destination)


def _report(done: Conversion, destination: Path) -> None:
    """What a person wants to check of a conversion."""
    from llama_jax.checkpoint.family import family, parameter_count

    source, written = done.source, done.written
    c = source.config
    tied = ", output tied to the embedding" if c.tie_embeddings else ""
    rows = {
        "model": family(c),
        "parameters": f"{parameter_count(c):,}",
        "layers": f"{c.n_layers}, dim {c.dim}, feed-forward {c.hidden_dim}",
        "heads": f"{c.n_heads} query, {c.n_kv_heads} key-value, of {c.head_dim}",
        "vocabulary": f"{c.vocab_size:,}{tied}",
        "RoPE": _rope(c),
        "context": f"{c.max_seq_len:,} positions",
        "dtype": _dtypes({t.dtype.name for t in source.tensors.values()}, set(written.dtypes)),
        "tokenizer": str(source.tokenizer or "none found; the checkpoint takes token ids"),
        "written": f"{written.bytes / 1e6:,.1f} MB in {written.seconds:.1f} s to {destination}",
    }
    for name, value in rows.items():
        print(f"{name:>12}  {value}")
    for note in source.notes:
        print(f"{'note':>12}  {note}")
    for warning in written.warnings:
        stderr.print(f"warning: {warning}", style="yellow")


def _rope(c: Config) -> str:
    from llama_jax.config import LinearScaling, Llama3Scaling

    theta = f"theta {c.rope_theta:,.0f}"
    match c.rope_scaling:
        case LinearScaling(factor):
            return f"{theta}, linear scaling by {factor:g}"
        case Llama3Scaling(factor=factor, original_max_seq_len=original):
            return f"{theta}, Llama 3 scaling by {factor:g} beyond {original:,} positions"
    return theta


def _dtypes(before: set[str], after: set[str]) -> str:
    read, wrote = (" and ".join(sorted(names)) for names in (before, after))
    return read if read == wrote else f"{wrote}, from {read}"
