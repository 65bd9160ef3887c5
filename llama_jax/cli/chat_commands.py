"""What can be typed in a chat that is no message: /help, /undo, /save FILE, ..."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_jax import distributed
from llama_jax.cli.console import stderr
from llama_jax.cli.text_input import read_text

if TYPE_CHECKING:
    from llama_jax.generation.chat import Conversation

_COMMAND = re.compile(r"(/[A-Za-z]+)(?:\s+(.*))?", re.DOTALL)
_SYNTAX = """
A message of several lines: paste it, end a line with \\, or put it between
\"\"\" and \"\"\".
A message that begins like a command: put a space before it.
Ctrl-C stops an answer; Ctrl-D leaves."""


@dataclasses.dataclass
class Session:
    """A conversation, and what was typed about it. Host state."""

    conversation: Conversation
    files: list[str] = dataclasses.field(default_factory=list)
    """Texts with which the next message begins."""
    over: bool = False
    failed: bool = False
    """Whether anything could not be done."""

    def with_files(self, question: str) -> str:
        """A message, after the texts of the files that wait for it."""
        text = "\n\n".join([*self.files, question])
        self.files.clear()
        return text


def command_in(text: str) -> tuple[str | None, str]:
    """The command that a text is, and the rest; None where it is a message.

    "/undo" is a command; " /undo", "/etc/hosts is what?" and "/2 of it" are messages.
    """
    found = _COMMAND.fullmatch(text.rstrip())
    return (found[1].lower(), (found[2] or "").strip()) if found else (None, "")


def run_command(session: Session, name: str, rest: str) -> str | None:
    """Does what a command says; the question that is to be asked again, if it says so."""
    if name not in COMMANDS:
        raise ValueError(f"{name} is no command; /help lists them. A space before it makes it text")
    return COMMANDS[name][0](session, rest)


def _help(_: Session, __: str) -> None:
    for name, (_run, takes, does) in COMMANDS.items():
        stderr.print(f"{name + ' ' + takes:<14}  {does}", style="dim")
    stderr.print(_SYNTAX, style="dim")


def _reset(session: Session, _: str) -> None:
    messages = session.conversation.messages
    system = messages[0] if messages and messages[0]["role"] == "system" else {}
    session.conversation.reset(system.get("content"))
    session.files.clear()
    stderr.print("forgotten", style="dim")


def _system(session: Session, rest: str) -> None:
    session.conversation.reset(rest or None)
    under = "under that system message" if rest else "without a system message"
    stderr.print(f"a new conversation {under}", style="dim")


def _undo(session: Session, _: str) -> None:
    question = _taken_back(session)
    stderr.print(f"taken back: {_short(question)}", style="dim")


def _retry(session: Session, _: str) -> str:
    """Another draw: a draw is a function of the seed and the position."""
    question = _taken_back(session)
    conversation = session.conversation
    settings = conversation.settings
    if settings.temperature == 0:
        stderr.print("at temperature 0 the answer is the same again", style="yellow")
    if settings.seed is not None:  # None draws a new one by itself
        conversation.settings = settings.replace(seed=(settings.seed + 1) % 2**32)
    return question


def _taken_back(session: Session) -> str:
    """Removes the last question, and what was answered, from the dialog."""
    question = session.conversation.undo()
    if question is None:
        raise ValueError("nothing was asked yet")
    return str(question["content"])


def _file(session: Session, rest: str) -> None:
    path = _path(rest, "/file")
    text = distributed.from_first(lambda: read_text(path).removesuffix("\n"))
    session.files.append(text)
    said = f"the {len(text):,} characters of {path} begin your next message"
    stderr.print(said, style="dim")


def _save(session: Session, rest: str) -> None:
    path = _path(rest, "/save")
    messages = session.conversation.messages
    distributed.from_first(lambda: _write(path, messages))
    stderr.print(f"{len(messages)} messages are in {path}", style="dim")


def _load(session: Session, rest: str) -> None:
    path = _path(rest, "/load")
    messages = distributed.from_first(lambda: _read(path))
    conversation = session.conversation
    conversation.reset()
    conversation.messages[:] = messages
    session.files.clear()
    stderr.print(f"{len(messages)} messages of {path} are the conversation now", style="dim")


def _quit(session: Session, _: str) -> None:
    session.over = True


COMMANDS: dict[str, tuple[Callable[[Session, str], str | None], str, str]] = {
    "/undo": (_undo, "", "take the last question and its answer back"),
    "/retry": (_retry, "", "ask the last question again, for another answer"),
    "/file": (_file, "FILE", "begin the next message with a file's text"),
    "/save": (_save, "FILE", "write the conversation to a file, as JSON"),
    "/load": (_load, "FILE", "go on with a conversation that was saved"),
    "/reset": (_reset, "", "forget the conversation, all but the system message"),
    "/system": (_system, "TEXT", "begin again under another system message (none without TEXT)"),
    "/help": (_help, "", "this list"),
    "/quit": (_quit, "", "leave, as Ctrl-D does"),
}
"""What each does, what it takes, and what /help says of it."""


def _path(rest: str, name: str) -> Path:
    if not rest:
        raise ValueError(f"{name} needs a file: {name} FILE")
    return Path(os.fsdecode(rest.encode())).expanduser()  # UTF-8, whatever the locale


def _read(path: Path) -> list[dict[str, Any]]:
    """The messages of a file: a JSON list, each with a role and a content.

    Whether the model can write them, its template says when it is asked about the next question.
    """
    from llama_jax.tokenizer.chat_template import ROLES
    from llama_jax.tokenizer.messages import checked_messages

    try:
        messages = json.loads(read_text(path))
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no saved conversation: {error}") from None
    whole = isinstance(messages, list) and all(
        isinstance(one, dict) and isinstance(one.get("role"), str) for one in messages
    )
    if not whole:
        raise ValueError(
            f'{path} is no saved conversation, which is a list of {{"role": ..., "content": ...}}'
        )
    try:
        return checked_messages(messages, ROLES) if messages else []
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _write(path: Path, messages: list[Any]) -> None:
    """Writes a conversation whole or not at all, over nothing but another one."""
    if path.exists() and not path.is_file():  # of a device there may be no end
        raise ValueError(f"{path} is a folder, a pipe, a socket or a device; name a file")
    if path.exists():
        try:
            _read(path)
        except ValueError:
            raise ValueError(f"{path} exists and is no saved conversation; name another") from None
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        text = json.dumps([dict(message) for message in messages], indent=1, ensure_ascii=False)
        beside.write_text(text + "\n", encoding="utf-8")
        beside.replace(path)
    except OSError as error:  # it names the file beside, which nobody asked for
        raise ValueError(f"{path} cannot be written: {error.strerror or error}") from None
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else line[:57] + "..."
