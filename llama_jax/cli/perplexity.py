"""`llama-jax perplexity`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llama_jax import distributed
from llama_jax.cli import options
from llama_jax.cli.console import print_json, stderr
from llama_jax.cli.description import say_notes
from llama_jax.cli.devices import Devices
from llama_jax.cli.processes import over_devices
from llama_jax.cli.text_input import name_of, read_text

if TYPE_CHECKING:
    from llama_jax.generation.results import Perplexity


@over_devices
def perplexity(
    checkpoint: options.Checkpoint,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A text file in UTF-8; - is stdin")],
    context: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="A longer text is read in windows of N tokens; default: the model's context",
            min=2,
        ),
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Each window begins N tokens after the one before, fewer than it has; default: "
            "half of them. A smaller N gives each token more context, and takes longer",
            min=1,
        ),
    ] = None,
    no_cache: options.NoCache = False,
    as_json: options.AsJson = False,
    *,
    weights: options.Weights,
    devices: Devices,
) -> None:
    """Measure how well a model predicts a text of any length.

    The number is the perplexity of a token, exp(nll / tokens): nll is the negative log-likelihood
    of all tokens after the first, which is bos where the tokenizer gives one. Lower is better. The
    text is read by windows of --context tokens, each of which begins with bos again, and a token
    counts in the first window that reaches it, with at least context - stride tokens before it. It
    depends on the tokenizer and on the windows: compare only numbers of the same.
    """
    from rich.progress import Progress

    import llama_jax
    from llama_jax.checkpoint.reading import open_checkpoint
    from llama_jax.generation.score import windows
    from llama_jax.tokenizer import shared_tokenizer

    text, source = distributed.from_first(lambda: read_text(file)), open_checkpoint(checkpoint)
    if source.tokenizer is None:
        raise ValueError(f"{checkpoint} has no tokenizer, and {name_of(file)} is text")
    windows(source.config, context, stride)  # before any weight is read
    tokenizer = shared_tokenizer(source.tokenizer)
    ids = tokenizer.encode(text, bos=True, eos=False)
    if len(ids) < 2:
        raise ValueError(f"{name_of(file)} holds no text to score")
    say_notes(source.notes_with(tokenizer))
    sizes = lambda source: (1, context or source.config.max_seq_len)  # noqa: E731
    params = devices.load(checkpoint, weights, sizes)
    with Progress(console=stderr, transient=True, disable=not stderr.is_terminal) as bar:
        task = bar.add_task("scoring", total=len(ids) - 1)
        for so_far in llama_jax.perplexity(params, ids, context=context, stride=stride):
            bar.update(task, completed=so_far.tokens)
    _print(so_far, as_json)


def _print(found: Perplexity, as_json: bool) -> None:
    if as_json:
        print_json({"perplexity": found.value, "nll": found.nll, "tokens": found.tokens})
    else:
        print(f"perplexity {found.value:.4f} (nll {found.nll:.4f} in all, {found.tokens:,} tokens)")
