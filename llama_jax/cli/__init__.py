"""`llama-jax COMMAND`: the package from a shell, a file a command.

Text goes to stdout, everything about it to stderr. Heavy imports wait until a command needs them,
so that `--help` and a mistyped path answer at once.
"""

from __future__ import annotations

import contextlib
import gc
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Annotated

import typer

import llama_jax
from llama_jax import distributed
from llama_jax.cli.chat import chat
from llama_jax.cli.console import FAILED, USAGE, discard_output, print_error
from llama_jax.cli.convert import convert
from llama_jax.cli.download import download
from llama_jax.cli.errors import ended_by_ctrl_c, in_plain_words
from llama_jax.cli.export import export
from llama_jax.cli.generate import generate
from llama_jax.cli.help import EXIT_CODES, Command
from llama_jax.cli.inspect import inspect
from llama_jax.cli.merge import merge
from llama_jax.cli.perplexity import perplexity
from llama_jax.cli.plot import plot
from llama_jax.cli.serve import serve
from llama_jax.cli.text_input import prepare_streams
from llama_jax.cli.tokenize import tokenize
from llama_jax.cli.train import train
from llama_jax.cli.train_tokenizer import train_tokenizer
from llama_jax.cli.unknown import Group
from llama_jax.cli.verify import verify

app = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="LLaMA checkpoints in JAX: generate, chat, measure, convert, train.",
    epilog=EXIT_CODES,
)
COMMANDS = (
    download,
    convert,
    export,
    verify,
    inspect,
    generate,
    chat,
    serve,
    perplexity,
    train_tokenizer,
    tokenize,
    train,
    merge,
    plot,
)
for command in COMMANDS:
    wrong = USAGE if command is verify else FAILED
    app.command(cls=Command)(in_plain_words(command, wrong))


def _print_version(asked: bool) -> None:
    if asked:
        print(f"llama_jax {llama_jax.__version__}")
        raise typer.Exit


@app.callback()
def options_of_all(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit"
        ),
    ] = False,
) -> None:
    """LLaMA checkpoints in JAX: generate, chat, measure, convert, train."""


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point of `llama-jax` and of the scripts in tools/."""
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    prepare_streams()
    try:
        try:
            with _seldom_collected(), ended_by_ctrl_c():
                app(args=arguments, prog_name=_program(arguments))
        finally:
            sys.stdout.flush()  # Python would only say at its end that an error was ignored
    except BrokenPipeError:  # `llama-jax generate ... | head`: whoever read has read enough
        distributed.fail(None)
        discard_output()
        raise SystemExit(1) from None
    except OSError as error:  # of `--help`, say, on a full disk: the commands tell of their own
        discard_output()
        print_error(f"the output cannot be written: {error.strerror or error}")
        raise SystemExit(1) from None


def _program(arguments: Sequence[str] | None) -> str | None:
    """The name under which a shell completes; by default the one that was typed.

    A shell completes a command, and would take `python -m llama_jax` for three.
    """
    given = sys.argv[1:] if arguments is None else arguments
    return "llama-jax" if {"--install-completion", "--show-completion"} & set(given) else None


@contextlib.contextmanager
def _seldom_collected() -> Iterator[None]:
    """Python's collector waits for half a million new objects.

    Imports and traces make 300,000 that stay, and by default it goes through them 460 times before
    the first token.
    """
    before = gc.get_threshold()
    gc.set_threshold(500_000)
    try:
        yield
    finally:
        gc.set_threshold(*before)
