"""The one door by which text comes in: files, stdin and arguments, as UTF-8.

A byte order mark is dropped, and a file that begins with UTF-16's is read as that. Lines end at
"\\n", "\\r\\n" or "\\r", and their ends become "\\n". The locale decides nothing.
"""

from __future__ import annotations

import codecs
import dataclasses
import io
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from llama_jax.cli.console import UsageError

_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[ntr0\\])")
_MEANT = {"n": "\n", "t": "\t", "r": "\r", "0": "\0", "\\": "\\"}
_Handler = Callable[[UnicodeError], tuple[str | bytes, int]]
_OUT, _ERR = "llama_jax.stdout", "llama_jax.stderr"
STDIN = Path("-")
"""As a file's name: standard input."""


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of a file, and what is wrong with it, if anything is."""

    number: int
    text: str
    """Without its end; bytes that are not UTF-8 are U+FFFD in it."""
    error: str | None = None


def name_of(file: Path) -> str:
    """What errors call a file."""
    return "stdin" if file == STDIN else str(file)


def read_text(file: Path) -> str:
    """The whole text of a file, or of stdin; ValueError names the first line that is not UTF-8."""
    lines = read_lines(file)
    for line in lines:
        if line.error is not None:
            raise ValueError(line.error)
    return "\n".join(line.text for line in lines)


def read_lines(file: Path) -> list[Line]:
    """The lines of a file, or of stdin; what follows the last line end is one too, if empty."""
    data = sys.stdin.buffer.read() if file == STDIN else file.read_bytes()
    for mark, encoding in ((codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be")):
        if data.startswith(mark):  # PowerShell's `>`; no UTF-8 begins so
            try:
                data = data[2:].decode(encoding).encode()
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{name_of(file)} begins as UTF-16 does, and is broken at byte "
                    f"{error.start + 3}; save it as UTF-8"
                ) from None
    parts = _with_newlines(data.removeprefix(codecs.BOM_UTF8)).split(b"\n")
    return [decoded(part, file, number) for number, part in enumerate(parts, start=1)]


def piped_lines() -> Iterator[Line]:
    """The lines of stdin, each as it comes: what writes to the pipe may wait for an answer."""
    number = 0
    for data in iter(sys.stdin.buffer.readline, b""):
        data = data if number else data.removeprefix(codecs.BOM_UTF8)
        for part in _with_newlines(data).removesuffix(b"\n").split(b"\n"):
            number += 1
            yield decoded(part, STDIN, number)


def _with_newlines(data: bytes) -> bytes:
    """Text whose lines end in "\\n" alone."""
    return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def decoded(data: bytes, file: Path, number: int) -> Line:
    """One line, from its bytes."""
    try:
        return Line(number, data.decode())
    except UnicodeDecodeError as error:
        return Line(
            number,
            data.decode(errors="replace"),
            f"{name_of(file)}, line {number}: byte {error.start + 1} of the line, "
            f"0x{data[error.start]:02X}, is not UTF-8; save the text as UTF-8",
        )


def argument(text: str, where: str) -> str:
    """An argument's text: what the locale could not decode is decoded as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        try:
            return os.fsencode(text).decode()
        except UnicodeError:
            raise UsageError(f"{where} is not UTF-8: {text!a}; give it in a file") from None
    return text


def unescaped(text: str, where: str) -> str:
    r"""The text with \n, \t, \r, \0, \\, \xNN, \uNNNN and \UNNNNNNNN as what they stand for.

    `where` is the option that gave it, which errors name.
    """

    def meant(found: re.Match[str]) -> str:
        name = found[1]
        if name in _MEANT:
            return _MEANT[name]
        try:
            return chr(int(name[1:], 16))
        except ValueError:
            raise UsageError(f"{where} has {found[0]}, which is beyond Unicode") from None

    found = _ESCAPE.sub(meant, text)
    try:
        found.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{where} {text!r} has a lone surrogate, which is no character") from None
    return found


def given_separator(text: str | None) -> str | None:
    """What --separator means; None where it is not given."""
    return None if text is None else unescaped(argument(text, "--separator"), "--separator")


def prepare_streams() -> None:
    """Text typed is UTF-8 too, and what a stream's encoding lacks ends nothing.

    It is "?" on stdout and an escape on stderr; a path's bytes that are no text come out as they
    are, as those of `ls` do. A stream that was closed (`<&-`) is one that is empty, or that nobody
    reads.
    """
    sys.stdin = sys.stdin or open(os.devnull, encoding="utf-8")  # noqa: SIM115
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors=_OUT)
    if isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr.reconfigure(errors=_ERR)


def _with_bytes(otherwise: _Handler) -> _Handler:
    """An error handler of codecs: what stands for a byte is that byte."""

    def handle(error: UnicodeError) -> tuple[str | bytes, int]:
        if isinstance(error, UnicodeEncodeError):
            code = ord(error.object[error.start])
            if 0xDC80 <= code <= 0xDCFF:  # as os.fsdecode writes the byte 0x80 to 0xFF
                return bytes([code - 0xDC00]), error.start + 1
        return otherwise(error)

    return handle


codecs.register_error(_OUT, _with_bytes(codecs.replace_errors))
codecs.register_error(_ERR, _with_bytes(codecs.backslashreplace_errors))
