"""The one door by which a foreign interpreter's failure comes in: as a ValueError of one line.

Jinja, the tokenizers library, SentencePiece, tiktoken and TensorStore read what strangers wrote,
and fail in their own ways: a SyntaxError, a MemoryError, a panic of Rust's that is no Exception.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

MAX_SAID = 240
"""Characters of a stranger's words in an error: none repeats a file."""
_TAIL = 60
_ENDS = KeyboardInterrupt, SystemExit, GeneratorExit
"""No failure of an interpreter: they end this one."""


@contextlib.contextmanager
def in_words(message: str) -> Iterator[None]:
    """Whatever the block raises as a ValueError of `message`, its own words in the place of {}."""
    try:
        yield
    except _ENDS:
        raise
    except BaseException as error:
        raise ValueError(message.replace("{}", plain(error), 1)) from None


def plain(said: object) -> str:
    """The words of an error, or any text: cut to `MAX_SAID`, its control characters escaped."""
    text = _words(said)
    if len(text) <= MAX_SAID and len(whole := _escaped(text)) <= MAX_SAID:
        return whole
    # No more is escaped than may be shown: a stranger's text can be a file.
    head, tail = _escaped(text[:MAX_SAID]), _escaped(text[-_TAIL:])
    return f"{head[: MAX_SAID - _TAIL - 5]} ... {tail[-_TAIL:]}"


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
