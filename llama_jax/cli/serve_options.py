"""The options of `llama-jax serve`: where it is reached, how much it takes on, on which devices."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Annotated

import typer

_network = functools.partial(typer.Option, rich_help_panel="Network")
_requests = functools.partial(typer.Option, rich_help_panel="Requests")
_devices = functools.partial(typer.Option, metavar="N", min=1, rich_help_panel="Several devices")


@dataclasses.dataclass(frozen=True)
class Network:
    """Where the server is reached, and by whom."""

    host: Annotated[
        str,
        _network(
            metavar="ADDRESS",
            help="Where to listen; 0.0.0.0 is every network of this machine",
        ),
    ] = "127.0.0.1"
    port: Annotated[
        int, _network(metavar="N", min=0, max=65535, help="0 takes one that is free")
    ] = 8000
    api_key_file: Annotated[
        Path | None,
        _network(
            metavar="FILE",
            help="Keys that clients must have, one a line; $LLAMA_JAX_API_KEYS has more, divided "
            "by commas. The page, /health and /ready need none",
        ),
    ] = None
    cors_origin: Annotated[
        list[str] | None,
        _network(
            metavar="ORIGIN",
            help="Let pages of this site ask, such as https://chat.example; repeat for more",
        ),
    ] = None
    name: Annotated[
        str | None,
        _network(
            metavar="NAME", help="What requests call the model; default: the checkpoint's name"
        ),
    ] = None


@dataclasses.dataclass(frozen=True)
class Requests:
    """How many requests are worked on, and how."""

    rows: Annotated[
        int | None,
        _requests(
            metavar="N",
            min=1,
            help="Completions at work at once; default: 16 on a CPU, more on a GPU",
        ),
    ] = None
    cache_gib: Annotated[
        float | None,
        _requests(
            metavar="GIB",
            min=0.001,
            help="Memory for keys and values, in GiB; default: what is free, within bounds",
        ),
    ] = None
    max_queued: Annotated[
        int, _requests(metavar="N", min=1, help="Requests that may wait; more are answered 429")
    ] = 256
    exact: Annotated[
        bool,
        _requests("--exact", help="Give a request the same bits whatever runs beside it; slower"),
    ] = False
    prefix_cache: Annotated[
        bool,
        _requests(
            "--prefix-cache/--no-prefix-cache",
            help="Read the beginning that a prompt shares with an earlier one only once",
        ),
    ] = True


@dataclasses.dataclass(frozen=True)
class OneReplica:
    """The devices of one server."""

    tensor: Annotated[
        int,
        _devices(
            help="Split each weight matrix over N devices (tensor parallelism). For more requests "
            "a second, run several servers behind a load balancer"
        ),
    ] = 1
    cpu_devices: Annotated[
        int | None,
        _devices(help="Make N devices of this machine's CPU, to try --tensor without accelerators"),
    ] = None
