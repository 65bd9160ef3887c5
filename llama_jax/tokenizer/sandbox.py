"""Jinja's sandbox as Hugging Face's chat templates expect it, with a clock and a measure.

A template comes with a checkpoint, from strangers. The sandbox keeps it from files and from
Python's insides. `template_budget` bounds a rendering's turns, time and memory, and nothing is
computed before they hold: Jinja would fold constants when it compiles.
"""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from jinja2 import Template, meta, nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, markup_join, str_join
from jinja2.sandbox import ImmutableSandboxedEnvironment

from llama_jax.tokenizer import template_budget
from llama_jax.tokenizer.foreign import in_words
from llama_jax.tokenizer.template_budget import budget
from llama_jax.tokenizer.template_filters import NO_FILTERS, OF_FILTERS, items_of, to_json
from llama_jax.tokenizer.template_globals import GLOBALS
from llama_jax.tokenizer.template_tree import CONCAT, COUNTED, MADE, TICKED, check_source, measured
from llama_jax.tokenizer.template_values import check_format, check_method, check_operation
from llama_jax.tokenizer.text_parts import written_with_parts

MAX_CHARACTERS, MAX_TIMES = 500_000, 8
"""One rendering writes at most so many characters, and so many times what the dialog has.

A tokenizer takes two microseconds and 400 bytes for each.
"""
_OF_VALUE = 100
"""Characters that are granted for each value of a dialog: a template writes marks around it."""

ANSWER = "_answer_begins", "_answer_ends"
"""Variables that `{% generation %}` writes before and after its part."""

_VALUES = str, bytes, list, tuple, dict, int, float, range
_NOT_JINJA = "the chat template is not Jinja (", "); copy or download its file again"
_JINJAS = "_loop_vars", "_block_vars"
"""What Jinja adds to a call, and takes away before it."""
_OF_CONTEXT = {"eval_context": "eval_ctx", "environment": "environment"}


def compile_template(source: str) -> Template:
    """The template, measured; ValueError where `source` is not Jinja."""
    environment = _Sandbox()
    # Jinja compiles to Python, which refuses some of it as it likes.
    with in_words(*_NOT_JINJA):
        source.encode()
        check_source(source)
        return environment.from_string(measured(environment.parse(source)))


def variables_of(source: str) -> set[str]:
    """The variables that a template reads, among those it is given."""
    with in_words(*_NOT_JINJA):
        check_source(source)
        return meta.find_undeclared_variables(measured(_Sandbox().parse(source)))


def render(
    template: Template, variables: Mapping[str, Any], *, may_take_parts: bool = False
) -> str:
    """What the template writes; ValueError where it refuses, fails or does not come to an end.

    If it `may_take_parts`, a content that it does not write is given to it as a part of text.
    """
    given = [variables.get("messages"), variables.get("tools")]
    limit = MAX_CHARACTERS + MAX_TIMES * _characters(given)
    begun = template_budget.begin()
    try:
        # A template can fail in any way that Python can.
        with in_words(
            "the model's chat template does not take this dialog: ",
            "; change the dialog, or encode it in a format of your own",
        ):
            write = functools.partial(_text, template, variables, limit)
            return written_with_parts(variables["messages"], write) if may_take_parts else write()
    finally:
        template_budget.end(begun)


def _text(template: Template, variables: Mapping[str, Any], limit: int, **more: Any) -> str:
    parts, length = [], 0
    for part in template.generate(variables, **more):
        parts.append(part)
        length += len(part)
        if length > limit:
            raise SecurityError(f"it writes more than {limit:,} characters")
    text = "".join(parts)
    text.encode()
    return text


def _characters(value: Any) -> int:
    """The characters of a dialog's texts, and those that are granted for its values."""
    if isinstance(value, str):
        return len(value) + _OF_VALUE
    if isinstance(value, Mapping):
        return sum(len(key) + _characters(one) for key, one in value.items())
    return sum(map(_characters, value)) if isinstance(value, list) else _OF_VALUE


class _Sandbox(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(["+", "-", "*", "/", "//", "%", "**"])

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[loopcontrols, _Generation],
            optimized=False,
            finalize=_written,
        )
        self.filters["tojson"] = to_json
        self.filters = {
            name: _bounded(run, name)
            for name, run in self.filters.items()
            if name not in NO_FILTERS
        }
        self.filters |= {COUNTED: _counted, MADE: _made, TICKED: _ticked, CONCAT: _concat}
        self.tests = {name: _bounded(run) for name, run in self.tests.items()}
        del self.globals["lipsum"]
        self.globals |= GLOBALS

    @staticmethod
    def concat(parts: Iterable[str]) -> str:
        """What a macro, a block or `{% set %}` wrote."""
        found, length = [], 0
        for part in parts:
            found.append(part)
            length += len(part)
            budget().allow(length)
        return budget().made("".join(found))

    def call(__self, __context: Context, __callable: Any, *args: Any, **named: Any) -> Any:
        budget().step()
        budget().pay(sys.getsizeof(args) + sys.getsizeof(named))
        if isinstance(__callable, LoopContext):  # a recursive loop's items
            args = tuple(map(budget().turns, args))
            if "iterable" in named:
                named["iterable"] = budget().turns(named["iterable"])
        if isinstance(__callable, types.BuiltinMethodType | types.MethodType):
            owner = __callable.__self__
            if isinstance(owner, _VALUES):
                said = {key: one for key, one in named.items() if key not in _JINJAS}
                args = check_method(__callable.__name__, owner, args, said)
        return _paid(super().call(__context, __callable, *args, **named))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        run = super().wrap_str_format(value)
        if run is None:
            return None

        @functools.wraps(run)
        def measured(*args: Any, **named: Any) -> str:
            check_format(value.__self__, [*args, named])
            return run(*args, **named)

        return measured

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        check_operation(operator, left, right)
        return budget().made(super().call_binop(context, operator, left, right), fresh=False)


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


def _bounded(run: Any, name: str = "") -> Any:
    """A filter of that name, or a test, that looks at the clock, and pays for what it makes.

    It asks for the context, whatever `run` asks for: Jinja then computes it in no compilation.
    """
    check = OF_FILTERS.get(name)
    wanted = getattr(getattr(run, "jinja_pass_arg", None), "name", None)

    @pass_context
    def bounded(context: Context, value: Any, *args: Any, **named: Any) -> Any:
        budget().tick()
        if check is not None:
            checked = check(value, *args, **named)
            value = value if checked is None else checked
        value = items_of(name, value, args, named)
        if wanted is None:
            return _paid(run(value, *args, **named))
        first = context if wanted == "context" else getattr(context, _OF_CONTEXT[wanted])
        return _paid(run(first, value, *args, **named))

    return bounded


def _paid(value: Any) -> Any:
    if isinstance(value, types.GeneratorType):
        return budget().turns(value)
    return budget().made(value)


@pass_context
def _counted(context: Context, items: Iterable[Any]) -> Iterator[Any]:
    return budget().turns(items)


@pass_context
def _made(context: Context, value: Any) -> Any:
    return budget().made(value, fresh=False)


@pass_context
def _ticked(context: Context, value: Any) -> Any:
    budget().tick()
    return value


@pass_context
def _concat(context: Context, parts: list[Any]) -> str:
    """Jinja's `~`."""
    budget().allow(sum(map(budget().size, parts)))
    join = markup_join if context.eval_ctx.autoescape else str_join
    return budget().made(join(parts))


@pass_context
def _written(context: Context, value: Any) -> Any:
    """A value that becomes text."""
    if isinstance(value, str):
        budget().tick()
        return value
    budget().allow(budget().size(value))
    return budget().made(str(value))
