"""Options that several commands share, alone and in groups."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

if TYPE_CHECKING:
    from llama_jax.generation.settings import SamplingSettings

Checkpoint = Annotated[Path, typer.Argument(help="A checkpoint's directory, of any format")]
Destination = Annotated[Path, typer.Argument(help="Directory to write: a new or an empty one")]
Dtype = Annotated[str | None, typer.Option(help="Default: float32 on CPU, bfloat16 on a GPU")]
StoredDtype = Annotated[
    str | None, typer.Option(help="float32, bfloat16 or float16; default: as stored")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object")]


def _kept(kept: bool) -> bool:
    if not kept:
        os.environ["LLAMA_JAX_CACHE"] = "off"
    return kept


Cache = Annotated[
    bool,
    typer.Option(
        "--cache/--no-cache",
        callback=_kept,
        help="Keep compiled programs for the next time, in $LLAMA_JAX_CACHE or the user's cache",
    ),
]


_devices = functools.partial(typer.Option, rich_help_panel="Several devices", min=1)


@dataclasses.dataclass(frozen=True)
class Mesh:
    """How many devices a model is to lie on, along each axis of the mesh."""

    tensor: Annotated[int, _devices(help="Devices that split heads, width and words")] = 1
    data: Annotated[int, _devices(help="... the texts")] = 1
    fsdp: Annotated[int, _devices(help="... the texts and every matrix")] = 1

    @property
    def axes(self) -> dict[str, Any]:
        """The same by name, as `make_mesh` takes them."""
        return {"data": self.data, "fsdp": self.fsdp, "tensor": self.tensor}


@dataclasses.dataclass(frozen=True)
class Sampling:
    """The settings that everything takes which writes text."""

    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", "-n", min=0)] = 256
    temperature: Annotated[
        float, typer.Option("--temperature", "-t", help="0 takes the likeliest token", min=0.0)
    ] = 0.8
    top_p: Annotated[float, typer.Option("--top-p", "-p", min=0.0, max=1.0)] = 0.95
    top_k: Annotated[int, typer.Option("--top-k", "-k", help="0 keeps all", min=0)] = 0
    min_p: Annotated[float, typer.Option(min=0.0, max=1.0)] = 0.0
    repetition_penalty: Annotated[float, typer.Option(help="1 is none", min=0.0)] = 1.0
    seed: Annotated[int, typer.Option("--seed", "-s", min=0, max=2**32 - 1)] = 0

    def settings(self) -> SamplingSettings:
        """The same, checked; what was not asked for is as it always is."""
        from llama_jax.generation.settings import SamplingSettings

        return SamplingSettings(**{k: v for k, v in vars(self).items() if v is not None})


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
