"""The one door by which a foreign interpreter's failure comes in: as a ValueError of one line.

Jinja, the tokenizers library, SentencePiece, tiktoken and TensorStore read what strangers wrote,
and fail in their own ways: a SyntaxError, a MemoryError, a panic of Rust's that is no Exception.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

MAX_SAID = 240
"""Characters of a stranger's words in an error: none repeats a file."""
MAX_ERROR = 400
"""Characters of an error that says what is wrong with a stranger's file, without its path."""
_TAIL = 60
_ENDS = KeyboardInterrupt, SystemExit, GeneratorExit
"""No failure of an interpreter: they end this one."""


@contextlib.contextmanager
def in_words(
    before: str, after: str = "", *, limit: int = MAX_SAID, but: tuple[type[Exception], ...] = ()
) -> Iterator[None]:
    """Whatever the block raises, `but` for these, as a ValueError: its words between two texts."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, (*_ENDS, *but)):
            raise
        raise ValueError(f"{before}{plain(error, limit)}{after}") from None


@contextlib.contextmanager
def in_short() -> Iterator[None]:
    """Cuts a ValueError of ours to `MAX_ERROR`, control characters escaped: it quotes a file."""
    try:
        yield
    except ValueError as error:
        if len(said := str(error)) <= MAX_ERROR and said.isprintable():
            raise
        raise ValueError(plain(said, MAX_ERROR)) from None


def plain(said: object, limit: int = MAX_SAID) -> str:
    """The words of an error, or any text: cut to `limit`, its control characters escaped."""
    text = _words(said)
    if len(text) <= limit and len(whole := _escaped(text)) <= limit:
        return whole
    # No more is escaped than may be shown: a stranger's text can be a file.
    head, tail = _escaped(text[:limit]), _escaped(text[-_TAIL:])
    return f"{head[: limit - _TAIL - 5]} ... {tail[-_TAIL:]}"


def _escaped(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _words(said: object) -> str:
    if isinstance(said, UnicodeEncodeError):
        return f"it writes the lone surrogate {said.object[said.start]!r}, which is no character"
    try:
        text = str(said)
    except Exception:  # a stranger's object may refuse even that
        text = ""
    return text.strip() or type(said).__name__
