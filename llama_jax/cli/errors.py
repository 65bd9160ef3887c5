"""A mistake ends in one line, in the words of the command's options, not of Python's arguments."""

from __future__ import annotations

import contextlib
import enum
import functools
import inspect
import os
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import typer

from llama_jax.cli.console import FAILED, plain_errors

INTERRUPTED = 130
"""Exit code after Ctrl-C, as Typer has it."""
USAGE = 2
"""Exit code of a wrong command line, as Typer has it; of `verify`, that a file cannot be read."""

_NAMED = re.compile(r"\b([a-z_]+)=('[^']*'|[^\s,;:()]+)?")


def in_plain_words(command: Callable[..., None], exit_code: int = FAILED) -> Callable[..., None]:
    """A command whose mistakes end in one line that says the way out, not in a traceback."""
    names = option_names(command)

    @functools.wraps(command)
    def run(**given: Any) -> None:
        with plain_errors(exit_code, lambda message: in_options(message, names, given)):
            command(**given)

    return run


def leave_at_once(code: int) -> NoReturn:
    """Ends the process as it is: XLA may be at work in a thread, under which Python crashes."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(code)


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

    `top_p=2.0 must be` becomes `--top-p 2.0 must be`, `pass truncate=True` becomes `pass
    --truncate`, and `pass process=` becomes `pass --process`. A name that has another value than
    the option was given (a field of a file) stays; of a list, any element will do.
    """

    def reworded(found: re.Match[str]) -> str:
        name, value = found.groups()
        if name not in names:
            return found[0]
        if value in ("True", None):
            return names[name]
        if value.startswith('"'):  # advice, which repr() did not write
            return f"{names[name]} {value.strip(chr(34))}"
        one = given.get(name)
        values = one if isinstance(one, list | tuple) else [one]
        typed = any(value in _spellings(each) for each in values)
        return f"{names[name]} {value}" if typed else found[0]

    return _NAMED.sub(reworded, message)


def _spellings(value: Any) -> set[str]:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    plain = value.value if isinstance(value, enum.Enum) else value
    return {str(plain), repr(plain)} | ({f"{value:g}"} if number else set())
