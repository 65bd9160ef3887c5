"""A group of options as one argument of a command."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, get_type_hints


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """A command as Typer takes it: an argument that is a dataclass becomes an option a field.

    The options' defaults are those of the argument's default, or else of the dataclass.
    """
    parameters = inspect.signature(command, eval_str=True).parameters.values()
    groups = {one.name: one for one in parameters if dataclasses.is_dataclass(one.annotation)}
    fields = {name: _fields(group) for name, group in groups.items()}
    asked = [each for one in parameters for each in fields.get(one.name, [one])]

    @functools.wraps(command)
    def run(**given: Any) -> None:
        made = {
            name: group.annotation(**{field.name: given.pop(field.name) for field in fields[name]})
            for name, group in groups.items()
        }
        command(**given, **made)

    del run.__wrapped__  # type: ignore[attr-defined]  # Typer would read the command's own arguments
    run.__signature__ = inspect.Signature(asked)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in asked}
    return run


def _fields(group: inspect.Parameter) -> list[inspect.Parameter]:
    usual = group.annotation() if group.default is group.empty else group.default
    return [
        group.replace(name=name, default=getattr(usual, name), annotation=kind)
        for name, kind in get_type_hints(group.annotation, include_extras=True).items()
    ]
