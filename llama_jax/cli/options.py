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
_MESH = "Several devices"
_JOB = "Several processes"
Tensor = Annotated[
    int,
    typer.Option(help="Devices that split heads, width and words", min=1, rich_help_panel=_MESH),
]
Data = Annotated[int, typer.Option(help="... the texts", min=1, rich_help_panel=_MESH)]
Fsdp = Annotated[
    int, typer.Option(help="... the texts and every weight", min=1, rich_help_panel=_MESH)
]
CpuDevices = Annotated[
    int | None, typer.Option(help="Make so many devices of a CPU", min=1, rich_help_panel=_MESH)
]
Distributed = Annotated[
    bool,
    typer.Option(
        "--distributed",
        help="Be one of several processes; Slurm, Open MPI or Kubernetes says which",
        rich_help_panel=_JOB,
    ),
]
Coordinator = Annotated[
    str | None, typer.Option(help="... or this: process 0's HOST:PORT", rich_help_panel=_JOB)
]
Processes = Annotated[
    int | None, typer.Option(help="... how many there are", min=1, rich_help_panel=_JOB)
]
Process = Annotated[
    int | None, typer.Option(help="... and which this is, from 0", min=0, rich_help_panel=_JOB)
]
StartTimeout = Annotated[
    float, typer.Option(help="Seconds to wait for the others", min=1, rich_help_panel=_JOB)
]
