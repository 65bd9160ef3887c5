"""Messages of a chat, as they are typed into a terminal or come through a pipe."""

from __future__ import annotations

import contextlib
import json
import locale
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from llama_jax.cli.console import print_error, stderr
from llama_jax.cli.text_input import Line, argument, piped_lines

VARIABLE = "LLAMA_JAX_HISTORY"
"""Environment: `off` keeps no history, a path keeps it in that file."""
KEPT = 1000
"""Messages of the history."""
PROMPT, MORE, QUOTES = "> ", "| ", '"""'


class Reader(Protocol):
    """Where messages come from."""

    is_terminal: bool
    failed: bool
    """Whether a line was lost."""

    def message(self) -> str | None:
        """The next message or command, or None at the end."""
        ...


def reader() -> Reader:
    """The one that fits: with editing and history where both ends are a terminal."""
    if sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty():
        return Terminal()
    return Piped(prompts=sys.stdin is not None and sys.stdin.isatty())


class Piped:
    """Lines of stdin. Nothing is written to stdout; a prompt for a person goes to stderr."""

    def __init__(self, *, prompts: bool) -> None:
        self.is_terminal, self.failed = prompts, False
        self._lines: Iterator[Line] = piped_lines()

    def message(self) -> str | None:
        """The next message; a line that is not UTF-8 is said, and lost."""
        return assembled(self._line)

    def _line(self, prompt: str) -> str | None:
        if self.is_terminal:
            sys.stderr.write(prompt)
            sys.stderr.flush()
        for line in self._lines:
            if line.error is None:
                return line.text
            self.failed = True
            print_error(line.error)
        return None


class Terminal:
    """A person at a terminal, with the history of earlier sessions."""

    is_terminal = True
    failed = False

    def __init__(self) -> None:
        self._history = history_file()
        self._remember = _with_editing(self._history)

    def message(self) -> str | None:
        """The next message; Ctrl-C begins it anew."""
        while True:
            try:
                text = assembled(input)
                if text is None:
                    print()
                elif text.strip():
                    text = as_typed(text)
                    self._remember(text)
                return text
            except EOFError:
                print()
                return None
            except KeyboardInterrupt:
                stderr.print("\nCtrl-D or /quit leaves", style="dim")
            except ValueError as error:
                print_error(str(error))


def as_typed(text: str) -> str:
    """A message as it was typed: in UTF-8, or else in the encoding of the terminal's locale."""
    try:
        return argument(text, "the message")
    except ValueError:
        with contextlib.suppress(UnicodeError):
            return text.encode(errors="surrogateescape").decode(locale.getencoding())
        raise


def assembled(line: Callable[[str], str | None]) -> str | None:
    """One message: a line, lines that end with a backslash, or what stands between quotes.

    `line` gives the next line, given a prompt; None or EOFError is the end of all.
    """
    text = line(PROMPT)
    if text is None:
        return None
    if text.startswith(QUOTES):
        return _quoted(text.removeprefix(QUOTES), line)
    while text.endswith("\\") and not text.endswith("\\\\"):
        more = _next(line)
        text = text[:-1] + "\n" + (more or "")
        if more is None:
            break
    return text


def _quoted(text: str, line: Callable[[str], str | None]) -> str:
    while not text.rstrip().endswith(QUOTES):
        more = _next(line)
        if more is None:  # what was typed is not lost
            return text.strip("\n")
        text += "\n" + more
    return text.rstrip().removesuffix(QUOTES).strip("\n")


def _next(line: Callable[[str], str | None]) -> str | None:
    try:
        return line(MORE)
    except EOFError:
        return None


def history_file() -> Path | None:
    """Where messages are kept between sessions; None where they are not."""
    wanted = os.environ.get(VARIABLE, "")
    if wanted.lower() in ("off", "0", "no", "false"):
        return None
    if wanted:
        return Path(wanted).expanduser()
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "llama_jax" / "chat_history.jsonl"


def _with_editing(history: Path | None) -> Callable[[str], None]:
    """Turns editing on, with the history of earlier sessions; the function keeps a message."""
    try:
        import readline
    except ImportError:  # on Windows the console edits
        return lambda text: None
    # A paste comes in one piece, whatever lines it has. 8-bit input, whatever the locale.
    for setting in ("enable-bracketed-paste on", "convert-meta off", "input-meta on"):
        readline.parse_and_bind(f"set {setting}")
    readline.parse_and_bind("set output-meta on")
    readline.set_auto_history(False)  # a message of several lines is one entry

    def add(text: str) -> None:
        with contextlib.suppress(ValueError):  # NUL, say
            try:
                readline.add_history(text)
            except UnicodeEncodeError:  # in the C locale; the bytes are UTF-8 all the same
                readline.add_history(text.encode().decode("ascii", "surrogateescape"))

    for text in read_history(history):
        add(text)

    def remember(text: str) -> None:
        add(text)
        keep_history(history, text)

    return remember


def read_history(file: Path | None) -> list[str]:
    """The last messages of earlier sessions, the oldest first; what is broken is left out."""
    if file is None:
        return []
    found = []
    with contextlib.suppress(OSError):
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError, RecursionError):
                text = json.loads(line)
                if isinstance(text, str):
                    found.append(text)
    return found[-KEPT:]


def keep_history(file: Path | None, text: str) -> None:
    """Adds a message, for this user's eyes alone; a disk that refuses is no reason to stop."""
    if file is None:
        return
    with contextlib.suppress(OSError):
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        mode = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        with open(os.open(file, mode, 0o600), "w", encoding="utf-8") as out:
            out.write(json.dumps(text) + "\n")
