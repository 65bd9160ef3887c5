"""What every command shares: stderr, progress, JSON, and errors that fit on a line."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

from llama_jax import distributed

# A path may hold brackets, colons and braces: nothing of a user's is markup, emoji or a format.
stderr = Console(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)
_SHOWN = 5
FAILED = 1
"""Exit code of a command that could not do what was asked; of `verify`, that models differ."""
USAGE = 2
"""Exit code of what was typed wrongly, as Typer has it; of `verify`, that a file cannot be read."""


class UsageError(ValueError):
    """What was typed is wrong, and no file is: options without sense together, a missing one."""


@contextlib.contextmanager
def progress_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr, moved by calling it with bytes done and bytes in all; none in a pipe."""
    said = TextColumn("{task.description}", markup=False)
    columns = said, BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
    piped = not stderr.is_terminal
    with Progress(*columns, console=stderr, transient=True, disable=piped) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def status(message: str) -> contextlib.AbstractContextManager[object]:
    """Says on stderr what a wait is for: a spinner on a terminal, one line elsewhere."""
    if stderr.is_terminal:
        spinner = "dots" if stderr.encoding.startswith("utf") else "line"
        return stderr.status(Text(message + " ..."), spinner=spinner)
    stderr.print(message + " ...")
    return contextlib.nullcontext()


def print_warnings(warnings: Sequence[str]) -> None:
    """The first warnings, and how many more there are: a file full of NaN has one a tensor."""
    for warning in warnings[:_SHOWN]:
        stderr.print(f"warning: {warning}", style="yellow")
    if (more := len(warnings) - _SHOWN) > 0:
        stderr.print(f"warning: and {more} more tensors like these", style="yellow")


def print_json(value: Any, indent: int | None = None) -> None:
    """Prints JSON for programs; NaN and infinity, which it has not, become null.

    A path whose bytes the locale could not read is told as UTF-8.
    """
    shown = lambda other: _plain(str(other))  # noqa: E731  a path, say
    print(json.dumps(_plain(value), indent=indent, default=shown, allow_nan=False))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, str):
        return in_utf8(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def in_utf8(text: str) -> str:
    """A path as a text that JSON can hold: bytes that the locale could not read, as UTF-8."""
    with contextlib.suppress(UnicodeEncodeError):  # a lone surrogate of another kind
        return text.encode(errors="surrogateescape").decode(errors="replace")
    return text


@contextlib.contextmanager
def plain_errors(
    exit_code: Callable[[Exception], int], reword: Callable[[str], str] = str
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
        raise typer.Exit(exit_code(error)) from error


def discard_output() -> None:
    """Lets stdout lead nowhere: what it still holds can be written no more."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def telling_of(place: Path) -> Iterator[None]:
    """A context that prints what was written. An output that fails does not hide that it was."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        discard_output()
        raise OSError(f"{place} is written, but the output is not: {said(error)}") from error


@contextlib.contextmanager
def typed() -> Iterator[None]:
    """What is refused here was typed: a ValueError becomes a UsageError."""
    try:
        yield
    except ValueError as error:
        raise UsageError(str(error)) from error


def print_error(message: str) -> None:
    """One line of at most 500 characters on stderr, in red on a terminal. A name may be longer."""
    line = one_line(f"error: {message}")
    stderr.print(line if len(line) <= 500 else f"{line[:290]} ... {line[-205:]}", style="red")


def one_line(text: str) -> str:
    """A text that says nothing to a terminal: what a name or a file would do to it is escaped.

    Halves of letters stay, which are bytes that the locale could not read.
    """
    if text.isprintable():
        return text
    kept = (c if c.isprintable() or "\ud800" <= c <= "\udfff" else ascii(c)[1:-1] for c in text)
    return "".join(kept)


def said(error: Exception) -> str:
    """What an exception says; of a file that the system refuses, its name comes first."""
    if not (isinstance(error, OSError) and error.strerror):
        return str(error)
    if error.filename is None:
        if error.errno == errno.ENOENT:  # of all calls without a name, that for this directory
            return "the directory that this runs in was removed; change to another"
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        return f"{'what is written has no room: ' * full}{error.strerror}"
    name = error.filename
    return f"{name.decode() if isinstance(name, bytes) else name}: {error.strerror}"
