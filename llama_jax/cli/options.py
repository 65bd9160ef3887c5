"""Options that several commands share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

Checkpoint = Annotated[Path, typer.Argument(help="A checkpoint's directory, of any format")]
Dtype = Annotated[str | None, typer.Option(help="Default: float32 on CPU, bfloat16 on a GPU")]
MaxNewTokens = Annotated[int, typer.Option("--max-new-tokens", "-n", min=0)]
Temperature = Annotated[
    float, typer.Option("--temperature", "-t", help="0 takes the likeliest token", min=0.0)
]
TopP = Annotated[float, typer.Option("--top-p", "-p", min=0.0, max=1.0)]
TopK = Annotated[int, typer.Option("--top-k", "-k", help="0 keeps all", min=0)]
MinP = Annotated[float, typer.Option("--min-p", min=0.0, max=1.0)]
Repetition = Annotated[float, typer.Option("--repetition-penalty", help="1 is none", min=0.0)]
Presence = Annotated[float, typer.Option("--presence-penalty", help="0 is none")]
Frequency = Annotated[float, typer.Option("--frequency-penalty", help="0 is none")]
Stop = Annotated[
    list[str] | None, typer.Option("--stop", help="A string that ends the text; may be repeated")
]
Seed = Annotated[int, typer.Option("--seed", "-s", min=0, max=2**32 - 1)]


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
