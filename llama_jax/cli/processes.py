"""The options of several processes, and what of them happens before a command begins."""

from __future__ import annotations

import dataclasses
import functools
import os
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from llama_jax import distributed as job
from llama_jax.cli.console import UsageError
from llama_jax.cli.groups import grouped

_job = functools.partial(typer.Option, rich_help_panel="Several processes")


@dataclasses.dataclass(frozen=True)
class Processes:
    """The devices and processes that take part in a command."""

    cpu_devices: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Make N devices of this machine's CPU, to try a mesh without accelerators",
            min=1,
            rich_help_panel="Several devices",
        ),
    ] = None
    distributed: Annotated[
        bool,
        _job(
            "--distributed",
            help="Run as one of several processes, each on its own devices. Slurm, Open MPI or "
            "Kubernetes says which; elsewhere the next three options do",
        ),
    ] = False
    coordinator: Annotated[
        str | None, _job(metavar="HOST:PORT", help="Where process 0 listens")
    ] = None
    processes: Annotated[
        int | None, _job(metavar="N", help="How many processes there are", min=1)
    ] = None
    process: Annotated[
        int | None, _job(metavar="N", help="Which of them this is, from 0", min=0)
    ] = None
    start_timeout: Annotated[
        float, _job(metavar="SECONDS", help="How long to wait for the other processes", min=1)
    ] = job.START_TIMEOUT

    def set_up(self) -> None:
        """Makes the devices of the CPU that are asked for, and joins the other processes.

        Before anything asks JAX for a device.
        """
        if self.cpu_devices is not None:
            _cut_cpu(self.cpu_devices)
        place = {name: getattr(self, name) for name in ("coordinator", "processes", "process")}
        if self.distributed:
            try:
                job.initialize(**place, start_timeout=self.start_timeout)
            except job.UnknownProcessError as error:
                raise UsageError(str(error)) from error
            _silence_others()
        elif given := [name for name, value in place.items() if value is not None]:
            raise UsageError(f"--{given[0]} says which of several processes; add --distributed")


def over_devices(command: Callable[..., None]) -> Callable[..., None]:
    """A command with the options of `Devices` or `Processes`, which are prepared when it runs.

    Where it is interrupted, or its reader gone, every process of its job ends.
    """

    @functools.wraps(command)
    def run(*, devices: Processes, **given: Any) -> None:
        devices.set_up()
        try:
            command(**given, devices=devices)
        except KeyboardInterrupt:
            job.fail("interrupted")
            raise
        except BrokenPipeError:  # which Typer would make an exit, at which JAX waits for the others
            job.fail(None)
            raise

    return grouped(run)


def _cut_cpu(count: int) -> None:
    import jax

    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError as error:
        raise ValueError(f"--cpu-devices {count} comes too late: {error}") from error


def _silence_others() -> None:
    """From here on process 0 alone speaks, and to stdout only what is its answer."""
    # Whatever C++ writes to stdout, as Gloo does, is no part of what was asked for.
    silence = os.open(os.devnull, os.O_WRONLY)
    sys.stdout.flush()
    own = os.dup(1) if job.is_first() else silence
    os.dup2(silence, 1)
    sys.stdout = os.fdopen(own, "w", encoding=sys.stdout.encoding, errors=sys.stdout.errors)
    if not job.is_first():
        sys.stderr = os.fdopen(os.dup(silence), "w")
