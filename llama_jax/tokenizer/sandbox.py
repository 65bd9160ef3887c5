"""Jinja's sandbox as Hugging Face's chat templates expect it, and limits for a hostile one.

A template comes with a checkpoint, from strangers. The sandbox keeps it from files and from
Python's insides; the limits end loops, recursion and output that go on and on. Memory is not
limited as such: run a template you have reason to fear in a process of its own.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NoReturn

from jinja2 import Template, meta, nodes, pass_context
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

MAX_STEPS = 300_000
"""Turns of loops and calls, together, in one rendering."""
MAX_CHARACTERS = 50_000_000
"""The limit on one rendering."""
MAX_FACTOR = 1_000
"""What `'a' * n` and `a ** n` take."""
MAX_BITS = 10_000
"""The limit on a product of two integers, whose length a loop could double at every turn."""

ANSWER = "_answer_begins", "_answer_ends"
"""Variables that `{% generation %}` writes before and after its part."""

_STEPS, _COUNTED = "_steps left", "_counted"


def compile_template(source: str) -> Template:
    """The template, its loops counted; ValueError where `source` is not Jinja."""
    environment = _Sandbox()
    try:
        source.encode()
        tree = environment.parse(source)
        for loop in list(tree.find_all(nodes.For)):
            loop.iter = nodes.Filter(loop.iter, _COUNTED, [], [], None, None, lineno=loop.lineno)
        return environment.from_string(tree)
    except Exception as error:  # Jinja compiles to Python, which refuses some of it as it likes
        raise ValueError(
            f"the chat template is not Jinja ({_said(error)}); copy or download its file again"
        ) from error


def variables_of(source: str) -> set[str]:
    """The variables that a template reads, among those it is given."""
    return meta.find_undeclared_variables(_Sandbox().parse(source))


def render(template: Template, variables: Mapping[str, Any]) -> str:
    """What the template writes; ValueError where it refuses, fails or does not come to an end."""
    parts, length = [], 0
    try:
        for part in template.generate(variables, **{_STEPS: iter(range(MAX_STEPS))}):
            parts.append(part)
            length += len(part)
            if length > MAX_CHARACTERS:
                raise SecurityError(f"it writes more than {MAX_CHARACTERS:,} characters")
        text = "".join(parts)
        text.encode()
    except Exception as error:  # a template can fail in any way that Python can
        raise ValueError(
            f"the model's chat template does not take this dialog: {_said(error)}; change the "
            "dialog, or encode it in a format of your own"
        ) from error
    return text


def _said(error: Exception) -> str:
    if isinstance(error, UnicodeEncodeError):
        return f"it writes the lone surrogate {error.object[error.start]!r}, which is no character"
    return str(error) or type(error).__name__


class _Sandbox(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(["*", "**"])

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
        )
        self.filters["tojson"] = _to_json
        self.filters[_COUNTED] = _counted
        self.globals["raise_exception"] = _raise
        self.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
        # The class itself would lend its other methods.
        self.globals["dict"] = lambda *items, **named: dict(*items, **named)
        self.globals["namespace"] = _Namespace

    def call(__self, __context: Context, __callable: Any, *args: Any, **named: Any) -> Any:
        _step(__context)
        return super().call(__context, __callable, *args, **named)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        numbers = isinstance(left, int | float) and isinstance(right, int | float)
        if operator == "**" or not numbers:
            for side in (left, right):
                if (abs(side) if isinstance(side, int | float) else len(side)) > MAX_FACTOR:
                    raise SecurityError(f"{operator} takes nothing beyond {MAX_FACTOR:,}")
        elif sum(side.bit_length() for side in (left, right) if isinstance(side, int)) > MAX_BITS:
            raise SecurityError(f"{operator} makes no number beyond {MAX_BITS:,} bits")
        return super().call_binop(context, operator, left, right)


class _Generation(Extension):
    """`{% generation %}`: says which part the assistant wrote, for training.

    It writes the variables of `ANSWER` around that part, and nothing where they are not given.
    """

    tags = {"generation"}  # noqa: RUF012 (as its base has it)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        line = next(parser.stream).lineno
        begin, end = (
            nodes.Output([nodes.Name(name, "load", lineno=line)], lineno=line) for name in ANSWER
        )
        return [begin, *parser.parse_statements(("name:endgeneration",), drop_needle=True), end]


class _Namespace(Namespace):
    def __getattribute__(self, name: str) -> Any:
        # A template's own `__call__` would be called past the sandbox's check.
        if name.startswith("_"):
            return object.__getattribute__(self, name)
        return super().__getattribute__(name)


@pass_context
def _counted(context: Context, items: Iterable[Any]) -> Iterator[Any]:
    for item in items:
        _step(context)
        yield item


def _step(context: Context) -> None:
    if next(context.parent[_STEPS], None) is None:
        raise SecurityError(f"it takes more than {MAX_STEPS:,} turns of loops and calls")


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
