"""`--help` in plain lines: every option whole at 80 columns, under the heading of its group.

And a value that an option does not take, in a line that names it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import typer
from typer.core import TyperCommand

EXIT_CODES = """Exit codes: 0 done; 1 a file or the work failed, or some lines of the
input did; 2 what was typed is wrong: a command, an option, a prompt, or a value
that it, the model or this machine does not take; 130 interrupted by Ctrl-C."""


class Command(TyperCommand):
    """A command whose help has a section for each `rich_help_panel` of its options.

    Typer's own tables cut long options short, and its plain help has one section for all.
    """

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        """The arguments, read. Of a value that is refused Typer says the rule and not the value."""
        try:
            return super().parse_args(ctx, args)  # type: ignore[arg-type]
        except typer.BadParameter as error:
            found = getattr(error.__cause__, "errors", None)  # pydantic's, by which Typer reads
            if found is not None:
                error.message = in_plain_words(error.message, found()[0]["input"])
            raise
        except Exception as error:
            typed = getattr(error, "option_name", "")  # that of an option which does not exist
            params = self.get_params(ctx)  # type: ignore[arg-type]
            known = [name for one in params for name in (*one.opts, *one.secondary_opts)]
            if typed.startswith("--") and (begun := begun_by(typed, known)):
                error.possibilities = begun  # type: ignore[attr-defined]
            raise

    def collect_usage_pieces(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        """The usage line's words. Typer puts braces around an argument that must be there."""
        return [
            piece.replace("{", "").replace("}", "") for piece in super().collect_usage_pieces(ctx)
        ]

    def format_options(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):  # type: ignore[arg-type]
            record = param.get_help_record(ctx)  # type: ignore[arg-type]
            if record is not None:
                argument = param.param_type_name == "argument"
                if argument:  # its name says what it is, and Typer adds Python's: <list[Path]>
                    record = record[0].partition(" <")[0], record[1]
                named = getattr(param, "rich_help_panel", None)
                title = named or ("Arguments" if argument else "Options")
                sections.setdefault(title, []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records, col_max=28)


def begun_by(typed: str, known: Iterable[str]) -> list[str]:
    """The options that begin so, an underscore being a dash: --temp is --temperature's."""
    return sorted(name for name in known if name.startswith(typed.replace("_", "-")))


def in_plain_words(message: str, value: object) -> str:
    """Pydantic's words about a value: "Input should be ..." becomes "'-1' should be ..."."""
    rule = message.removeprefix("Value error, ").partition(", unable to parse")[0]
    return rule.replace("Input should", f"{value!r} should", 1)
