"""`llama-jax perplexity`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from llama_jax.cli import options
from llama_jax.cli.console import plain_errors, status, stderr
from llama_jax.cli.loading import load


def perplexity(
    checkpoint: options.Checkpoint,
    file: Annotated[Path, typer.Argument(help="A text, UTF-8")],
    context: Annotated[
        int | None, typer.Option(help="Tokens in a window; default: the model's context", min=2)
    ] = None,
    stride: Annotated[
        int | None, typer.Option(help="Tokens from window to window; default: half one", min=1)
    ] = None,
    dtype: options.Dtype = None,
    cache: options.Cache = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object")] = False,
) -> None:
    """Measure how well a checkpoint predicts a text of any length."""
    with plain_errors():
        text = file.read_text(encoding="utf-8")
        with status(f"loading {checkpoint}"):
            from rich.progress import Progress

            import llama_jax

            params = load(checkpoint, dtype)
            if params.tokenizer is None:
                raise ValueError(f"{checkpoint} has no tokenizer, and {file} is text")
            ids = llama_jax.load_tokenizer(params.tokenizer).encode(text, bos=True, eos=False)
        if len(ids) < 2:
            raise ValueError(f"{file} holds no text to score")
        with Progress(console=stderr, transient=True) as bar:
            task = bar.add_task("scoring", total=len(ids) - 1)
            for so_far in llama_jax.perplexity(params, ids, context=context, stride=stride):
                bar.update(task, completed=so_far.tokens)
        found = {"perplexity": so_far.value, "nll": so_far.nll, "tokens": so_far.tokens}
        if as_json:
            print(json.dumps(found))
        else:
            print(f"perplexity {so_far.value:.4f} (nll {so_far.nll:.4f}, {so_far.tokens:,} tokens)")
