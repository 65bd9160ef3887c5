"""What `generate` is asked to complete: arguments, lines of a file, JSON lines, stdin."""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from llama_jax.cli.console import UsageError, stderr
from llama_jax.cli.text_input import STDIN, argument, name_of, read_lines, read_text


@dataclasses.dataclass
class Asked:
    """One prompt, or what is wrong with it: one that is wrong costs no other."""

    where: str
    """Where it stands, for errors: "prompt 2", or "prompts.txt, line 3"."""
    shown: Any
    """As it was given."""
    prompt: Any = None
    """As the model takes it: a text, ids, or a dialog."""
    error: str | None = None
    typed: bool = False
    """Whether it is an argument of the command, and no line of a file."""
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    """The settings that a JSON line states itself."""
    tools: Any = None
    """The tools that a JSON line tells a dialog of."""
    id: Any = None
    """The id that a JSON line states, of any kind."""


_input = functools.partial(typer.Option, rich_help_panel="Prompts")


@dataclasses.dataclass(frozen=True)
class Reading:
    """Where the prompts come from, and how their text is to be read."""

    file: Annotated[
        Path | None,
        _input("--file", "-f", metavar="FILE", help="Read prompts from a file; - is stdin"),
    ] = None
    lines: Annotated[
        bool | None,
        _input(
            "--lines/--whole",
            help="Each line of the file is a prompt, or all of it is one; by default a file's "
            "lines are prompts, and text from a pipe without --file is one",
            show_default=False,
        ),
    ] = None
    jsonl: Annotated[
        bool,
        _input(
            "--jsonl",
            help="Each prompt, or line of the input, is JSON: a text, a list of token ids, or an "
            'object with "prompt" or "messages", settings such as "temperature", and for messages '
            '"tools" that the model may call. Prints one JSON object a completion as soon as it '
            'ends, with the prompt\'s place as "index"',
        ),
    ] = False
    ids: Annotated[
        bool, _input("--ids", help="Prompts are token ids, and so is what is printed")
    ] = False
    chat: Annotated[
        bool,
        _input(
            "--chat", help="Each prompt is a question: it goes through the model's chat template"
        ),
    ] = False
    system: Annotated[
        str | None,
        _input(metavar="TEXT", help="With --chat: the system message before each question"),
    ] = None
    truncate: Annotated[
        bool,
        _input(
            "--truncate",
            help="Cut the beginning off a text, not a dialog, that is longer than the context",
        ),
    ] = False

    def read(self, prompts: Sequence[str]) -> list[dict[str, Any]]:
        """All that is asked for, as JSON can say it: `Asked(**one)` is one of them."""
        self._check()
        file, read = self.file, self._of_json if self.jsonl else self._of_text
        asked = [
            dataclasses.replace(read(text, f"prompt {i}"), typed=True)
            for i, text in enumerate(_arguments(prompts), 1)
        ]
        if file is None and not asked and not _is_terminal(sys.stdin):
            file = STDIN
            asked += self._of_file(file, lines=bool(self.lines) or self.jsonl)
        elif file is not None:
            asked += self._of_file(file, lines=self.lines is not False)
        if not asked:
            raise UsageError(
                'no prompt; pass one ("" starts from bos alone; a single word needs a checkpoint '
                "before it, if only `stories`), --file PROMPTS, or text by a pipe"
            )
        return [vars(one) for one in asked]

    def _check(self) -> None:
        if self.system is not None and not self.chat:
            raise UsageError("--system is the system message of a chat; add --chat")
        if self.chat and self.ids:
            raise UsageError("--chat takes text and --ids token ids; leave one out")
        if self.jsonl and self.lines is False:
            raise UsageError("--jsonl reads each line and --whole all as one; leave one out")

    def _of_file(self, file: Path, *, lines: bool) -> list[Asked]:
        if self.jsonl:
            return _each_line(file, self._of_json)
        if lines:
            asked = _each_line(file, self._of_text)
            if self.lines is None and len(asked) > 1:
                other = "--jsonl reads JSON" if file.suffix == ".jsonl" else "--whole makes it one"
                said = f"{name_of(file)}: {len(asked)} prompts, one a line; {other}"
                stderr.print(said, style="dim")
            return asked
        text = read_text(file).removesuffix("\n")  # which an editor, or echo, puts there
        return [self._of_text(text, name_of(file))] if text.strip() else []

    def _of_text(self, text: str, where: str) -> Asked:
        asked = Asked(where, text)
        try:
            asked.prompt = self._prompt(text, where)
        except ValueError as error:
            asked.error = str(error)
        return asked

    def _prompt(self, text: str, where: str) -> Any:
        if self.ids:
            return _parse_ids(text, where)
        if not self.chat:
            return text
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*system, {"role": "user", "content": text}]

    def _of_json(self, line: str, where: str) -> Asked:
        asked = Asked(where, line)
        try:
            self._fill(asked, line)
        except (ValueError, RecursionError) as error:
            asked.error = str(error) if str(error).startswith(where) else f"{where}: {error}"
        return asked

    def _fill(self, asked: Asked, line: str) -> None:
        """What a JSON line says: a text, a list of ids, or an object with one of them and more."""
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"no JSON ({error})") from None
        fields = value if isinstance(value, dict) else {"prompt": value}
        asked.id = fields.pop("id", None)
        given = [name for name in ("prompt", "messages") if name in fields]
        if len(given) != 1:
            raise ValueError('needs either "prompt" or "messages"')
        asked.shown = prompt = fields.pop(given[0])
        asked.tools = fields.pop("tools", None)
        _check_settings(fields)
        asked.settings = fields
        if given == ["messages"] and not (isinstance(prompt, list) and prompt):
            raise ValueError('"messages" must be a list of {"role": ..., "content": ...}')
        if given == ["prompt"] and not isinstance(prompt, str | list):
            raise ValueError('"prompt" must be a text or a list of token ids')
        asked.prompt = self._prompt(prompt, asked.where) if isinstance(prompt, str) else prompt


def _check_settings(fields: Collection[str]) -> None:
    from llama_jax.generation.settings import SamplingSettings

    known = [field.name for field in dataclasses.fields(SamplingSettings)]
    if unknown := [name for name in fields if name not in known]:
        raise ValueError(f"{unknown[0]!r} is no setting; the settings are {', '.join(known)}")


def _arguments(prompts: Sequence[str]) -> list[str]:
    return [argument(text, f"prompt {i}") for i, text in enumerate(prompts, start=1)]


def _each_line(file: Path, read: Callable[[str, str], Asked]) -> list[Asked]:
    """What each line that is not blank asks for."""
    asked = []
    for line in read_lines(file):
        where = f"{name_of(file)}, line {line.number}"
        if line.error is not None:
            asked.append(Asked(where, line.text, error=line.error))
        elif line.text.strip():
            asked.append(read(line.text, where))
    return asked


def _parse_ids(text: str, where: str) -> list[int]:
    try:
        return [int(word) for word in text.replace(",", " ").split()]
    except ValueError:
        raise ValueError(
            f"{where}: --ids takes token ids such as '1 15043 3186', not {text!r:.60}"
        ) from None


def _is_terminal(stream: Any) -> bool:
    return stream is None or stream.isatty()
