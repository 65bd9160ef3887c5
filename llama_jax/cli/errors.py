"""A mistake ends in one line, in the words of the command's options, not of Python's arguments."""

from __future__ import annotations

import contextlib
import enum
import functools
import inspect
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from importlib.machinery import ExtensionFileLoader
from types import FrameType
from typing import Any, NoReturn

import typer

from llama_jax.cli.console import FAILED, USAGE, UsageError, plain_errors, said

INTERRUPTED = 130
"""Exit code after Ctrl-C, as Typer has it."""

_LOADING = {
    ExtensionFileLoader.create_module.__code__,
    ExtensionFileLoader.exec_module.__code__,
}
_NAMED = re.compile(r"\b([a-z_]+)=('[^']*'|[^\s,;:()]+)?")


def in_plain_words(command: Callable[..., None], exit_code: int = FAILED) -> Callable[..., None]:
    """A command whose mistakes end in one line that says the way out, not in a traceback.

    The exit code is 2 where the line is about what was typed: a `UsageError`, or an error that
    names an argument of the command with the value that its option was given. Otherwise files or
    the work went wrong, which is `exit_code`.
    """
    names = option_names(command)
    usual = {one.name: one.default for one in inspect.signature(command).parameters.values()}

    @functools.wraps(command)
    def run(**given: Any) -> None:
        chosen = {name: value for name, value in given.items() if value != usual.get(name)}

        def code(error: Exception) -> int:
            wrong = isinstance(error, UsageError) or names_typed(said(error), names, chosen)
            return USAGE if wrong else exit_code

        with plain_errors(code, lambda message: in_options(message, names, given)):
            command(**given)

    return run


@contextlib.contextmanager
def ended_by_ctrl_c() -> Iterator[None]:
    """A context that Ctrl-C ends with the process. Typer makes a `SystemExit` of it."""
    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    usual &= threading.current_thread() is threading.main_thread()  # which alone hears signals
    if usual:
        signal.signal(signal.SIGINT, _interrupt)
    try:
        yield
    except BaseException as error:
        typers = isinstance(error, SystemExit) and error.code == INTERRUPTED
        if typers or isinstance(error, KeyboardInterrupt):
            leave_at_once(INTERRUPTED)
        raise
    finally:
        if usual:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """What Python does at Ctrl-C, once no extension module is being loaded.

    There it would become another error, or end in C++ with an abort and a dump.
    """
    while frame is not None and frame.f_code not in _LOADING:
        frame = frame.f_back
    if frame is None:
        raise KeyboardInterrupt
    again = threading.Timer(0.02, signal.raise_signal, [number])
    again.daemon = True
    again.start()


def leave_at_once(code: int) -> NoReturn:
    """Ends the process as it is.

    Otherwise Python could crash: XLA may be at work in a thread, and what an interrupted lowering
    leaves may not be collected.
    """
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
        return f"{names[name]} {value}" if _is_typed(value, given.get(name)) else found[0]

    return _NAMED.sub(reworded, message)


def names_typed(message: str, names: Mapping[str, str], chosen: Mapping[str, Any]) -> bool:
    """Whether a message names an argument with the value that its option was given.

    For example "top_p=2.0 must be", after --top-p 2, and not "max_seq_len=256" of a file.
    """
    found = (one.groups() for one in _NAMED.finditer(message))
    return any(name in names and _is_typed(value, chosen.get(name)) for name, value in found)


def _is_typed(value: str | None, given: Any) -> bool:
    values = given if isinstance(given, list | tuple) else [given]
    return given is not None and any(value in _spellings(each) for each in values)


def _spellings(value: Any) -> set[str]:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    plain = value.value if isinstance(value, enum.Enum) else value
    return {str(plain), repr(plain)} | ({f"{value:g}"} if number else set())
