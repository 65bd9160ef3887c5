"""A mistake ends in one line, in the words of the command's options, not of Python's arguments."""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import typer

from llama_jax import distributed
from llama_jax.cli.console import stderr

FAILED = 1
"""Exit code of a command that could not do what was asked; of `verify`, that models differ."""
USAGE = 2
"""Exit code of a wrong command line, as Typer has it; of `verify`, that a file cannot be read."""

_NAMED = re.compile(r"\b([a-z_]+)=('[^']*'|[^\s,;:()]+)")


def in_plain_words(command: Callable[..., None], exit_code: int = FAILED) -> Callable[..., None]:
    """A command whose mistakes end in one line that says the way out, not in a traceback."""
    names = option_names(command)

    @functools.wraps(command)
    def run(**given: Any) -> None:
        with plain_errors(exit_code, lambda message: in_options(message, names, given)):
            command(**given)

    return run


@contextlib.contextmanager
def plain_errors(
    exit_code: int = FAILED, reword: Callable[[str], str] = lambda message: message
) -> Iterator[None]:
    """Prints a ValueError or an OSError as one line, and exits."""
    try:
        yield
    except BrokenPipeError:
        raise
    except (ValueError, OSError) as error:
        message = reword(said(error))
        distributed.fail(message)
        print_error(message)
        raise typer.Exit(exit_code) from error


def print_error(message: str) -> None:
    """One line on stderr, in red on a terminal."""
    stderr.print(f"error: {message}", style="red")


def said(error: Exception) -> str:
    """What an exception says; of a file that the system refuses, its name comes first."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        name = error.filename
        return f"{name.decode() if isinstance(name, bytes) else name}: {error.strerror}"
    return str(error)


def option_names(command: Callable[..., None]) -> dict[str, str]:
    """The option that gives each of a command's arguments: {"top_p": "--top-p", ...}."""
    found = {}
    for one in inspect.signature(command, eval_str=True).parameters.values():
        for meta in getattr(one.annotation, "__metadata__", ()):
            if isinstance(meta, typer.models.OptionInfo):
                spelled = [each for each in meta.param_decls or () if each.startswith("--")]
                option = spelled[0] if spelled else "--" + one.name.replace("_", "-")
                found[one.name] = option.split("/")[0]
    return found


def in_options(message: str, names: Mapping[str, str], given: Mapping[str, Any]) -> str:
    """A message about Python's arguments in the options that gave them.

    `top_p=2.0 must be` becomes `--top-p 2.0 must be`, and `pass truncate=True` becomes `pass
    --truncate`. A name that has another value than the option was given (a field of a file) stays.
    """

    def reworded(found: re.Match[str]) -> str:
        name, value = found.groups()
        if name not in names:
            return found[0]
        if value == "True":
            return names[name]
        return f"{names[name]} {value}" if value in _spellings(given.get(name)) else found[0]

    return _NAMED.sub(reworded, message)


def _spellings(value: Any) -> set[str]:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return {str(value), repr(value)} | ({f"{value:g}"} if number else set())
