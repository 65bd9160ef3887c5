"""The options of a mesh, and of several processes, for the commands that run a model."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llama_jax import distributed as job
from llama_jax.cli import options
from llama_jax.cli.compiling import notice_compiling
from llama_jax.cli.console import UsageError, status, stderr
from llama_jax.cli.groups import grouped
from llama_jax.cli.loading import load_ahead

if TYPE_CHECKING:
    from llama_jax.checkpoint.source import Source
    from llama_jax.model.memory import Memory
    from llama_jax.weights.params import Params

_job = functools.partial(typer.Option, rich_help_panel="Several processes")


@dataclasses.dataclass(frozen=True)
class Devices(options.Mesh):
    """The mesh that a model is to lie on, and the devices and processes that make it up."""

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
            job.initialize(**place, start_timeout=self.start_timeout)
            _silence_others()
        elif given := [name for name, value in place.items() if value is not None]:
            raise UsageError(f"--{given[0]} says which of several processes; add --distributed")

    def load(
        self,
        checkpoint: Path,
        weights: options.Weights,
        cache: Callable[[Source], tuple[int, int]],
    ) -> Params:
        """The model, on its devices; on stderr what each of several will hold, before it does.

        `cache` says how many rows and positions will be asked of it.
        """
        return self.load_ahead(checkpoint, weights, cache, None)[0]

    def load_ahead(
        self,
        checkpoint: Path,
        weights: options.Weights,
        cache: Callable[[Source], tuple[int, int]],
        prepare: Callable[[Params], Iterator[None]] | None,
    ) -> tuple[Params, Callable[[], None]]:
        """`load`, while a thread takes the steps of `prepare`, which gets the weights' shapes.

        On one device alone; the function returned waits for the thread's end.
        """

        import llama_jax

        self._check_there()
        notice_compiling()
        mesh = None
        if self._size > 1:
            mesh = llama_jax.make_mesh(**self.axes)
            needed, asked = self._needed(checkpoint, weights, mesh, cache)
            stderr.print(f"{self}; {_held(needed, asked)}")
            _check_fits(needed)
        with status(f"loading {checkpoint}"):
            if mesh is None and prepare is not None:
                return load_ahead(checkpoint, prepare, **weights.how)
            return llama_jax.load(checkpoint, mesh=mesh, **weights.how), lambda: None

    def __str__(self) -> str:
        import jax

        kind = jax.devices()[0].device_kind
        among = f" of {jax.process_count()} processes" if jax.process_count() > 1 else ""
        axes = " ".join(f"{axis}={size}" for axis, size in self.axes.items())
        return f"mesh: {axes} over {self._size} devices ({kind}){among}"

    @property
    def _size(self) -> int:
        return math.prod(self.axes.values())

    def _check_there(self) -> None:
        import jax

        from llama_jax.kernels import devices_can_be_made

        there, asked = len(jax.devices()), f"--data x --fsdp x --tensor is {self._size}"
        if jax.process_count() > 1 and self._size != there:
            raise UsageError(
                f"{asked} and the {jax.process_count()} processes have {there} devices; a mesh "
                f"takes all of them, such as --tensor {there}"
            )
        if self._size > there:
            have = "there is one device" if there == 1 else f"there are {there} devices"
            more = f", or add --cpu-devices {self._size} to make as many of this machine's CPU"
            way_out = more if devices_can_be_made(jax.default_backend()) else ""
            raise UsageError(f"{asked} and {have}; lower one of the three{way_out}")

    def _needed(
        self,
        checkpoint: Path,
        weights: options.Weights,
        mesh: Any,
        cache: Callable[[Source], tuple[int, int]],
    ) -> tuple[Memory, tuple[int, int]]:
        import jax

        from llama_jax.checkpoint import shapes
        from llama_jax.checkpoint.dtypes import parse_dtype
        from llama_jax.checkpoint.reading import open_checkpoint
        from llama_jax.kernels import cache_dtype, weight_dtype
        from llama_jax.model.memory import memory
        from llama_jax.weights.params import weight_at
        from llama_jax.weights.table import weight_table

        source = open_checkpoint(checkpoint)
        rows, positions = cache(source)
        positions = min(positions, source.config.max_seq_len)
        dtype = parse_dtype(weights.dtype or weight_dtype(jax.default_backend()).name)
        loaded = shapes(checkpoint, mesh=mesh, **weights.how).weights
        needed = memory(
            source.config,
            dtype=dtype,
            batch=rows,
            context=positions,
            cache_dtype=cache_dtype(jax.default_backend(), dtype),
            stored={path: weight_at(loaded, path) for path in weight_table(source.config)},
            **self.axes,
        )
        return needed, (rows, positions)


def over_devices(command: Callable[..., None]) -> Callable[..., None]:
    """A command with the options of `Devices`, which are prepared when it runs.

    Where it is interrupted, or its reader gone, every process of its job ends.
    """

    @functools.wraps(command)
    def run(*, devices: Devices, **given: Any) -> None:
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


def _held(needed: Memory, asked: tuple[int, int]) -> str:
    from llama_jax.checkpoint.files.messages import in_units

    rows, positions = asked
    weights, cache = in_units(needed.weights_per_device), in_units(needed.cache_per_device)
    text = f"{rows} row{'s' * (rows != 1)} of up to {positions:,} tokens"
    return f"on each: weights {weights}, cache up to {cache} for {text}"


def _check_fits(needed: Memory) -> None:
    """Refuses weights for which a device says that it has no room; a CPU says nothing."""
    import jax

    from llama_jax.checkpoint.files.messages import in_units

    for device in jax.local_devices():
        limit = (device.memory_stats() or {}).get("bytes_limit")
        if limit is not None and needed.weights_per_device > limit:
            raise ValueError(
                f"the weights are more than the {in_units(limit)} that JAX has of each device; "
                "raise --tensor or --fsdp, or XLA_CLIENT_MEM_FRACTION"
            )


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
