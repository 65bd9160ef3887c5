"""The options of a mesh, and of several processes, for the commands that run a model."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_jax import distributed as job
from llama_jax.cli import options
from llama_jax.cli.console import plain_errors, status, stderr
from llama_jax.cli.loading import load_ahead

if TYPE_CHECKING:
    from llama_jax.checkpoint.inspection import Memory
    from llama_jax.checkpoint.source import Source
    from llama_jax.params import Params

_MESH: dict[str, tuple[Any, Any]] = {
    "tensor": (options.Tensor, 1),
    "data": (options.Data, 1),
    "fsdp": (options.Fsdp, 1),
    "cpu_devices": (options.CpuDevices, None),
}
_JOB: dict[str, tuple[Any, Any]] = {
    "distributed": (options.Distributed, False),
    "coordinator": (options.Coordinator, None),
    "processes": (options.Processes, None),
    "process": (options.Process, None),
    "start_timeout": (options.StartTimeout, job.START_TIMEOUT),
}


def over_devices(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the options above; what they say comes as its argument `devices`."""
    signature = inspect.signature(command, eval_str=True)
    own = [one for one in signature.parameters.values() if one.name != "devices"]
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        for name, (kind, default) in {**_MESH, **_JOB}.items()
    ]

    @functools.wraps(command)
    def run(**given: Any) -> None:
        mesh = {name: given.pop(name) for name in _MESH}
        processes = {name: given.pop(name) for name in _JOB}
        with plain_errors():
            _cut_cpu(mesh.pop("cpu_devices"))
            _join(**processes)
        try:
            command(**given, devices=Devices(**mesh))
        except KeyboardInterrupt:
            job.fail("interrupted")
            raise
        except BrokenPipeError:  # which Typer would make an exit, at which JAX waits for the others
            job.fail(None)
            raise

    del run.__wrapped__  # type: ignore[attr-defined]  # Typer would read the command's own options
    run.__signature__ = signature.replace(parameters=[*own, *added])  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in [*own, *added]}
    return run


@dataclasses.dataclass(frozen=True)
class Devices:
    """How many devices a model is to lie on, along each axis of the mesh."""

    data: int
    fsdp: int
    tensor: int

    def load(
        self, checkpoint: Path, dtype: str | None, cache: Callable[[Source], tuple[int, int]]
    ) -> Params:
        """The model, on its devices; on stderr what each of several will hold, before it does.

        `cache` says how many rows and positions will be asked of it.
        """
        params, ready = self.load_ahead(checkpoint, dtype, cache, lambda _: iter(()))
        ready()
        return params

    def load_ahead(
        self,
        checkpoint: Path,
        dtype: str | None,
        cache: Callable[[Source], tuple[int, int]],
        prepare: Callable[[Params], Iterator[None]],
    ) -> tuple[Params, Callable[[], None]]:
        """`load`, while a thread takes the steps of `prepare`, which gets the weights' shapes.

        On one device alone; the function returned waits for the thread's end.
        """
        import jax

        import llama_jax

        self._check_there()
        if self._size == 1:
            with status(f"loading {checkpoint}"):
                return load_ahead(checkpoint, dtype, prepare)
        dtype = dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
        needed, asked = self._needed(checkpoint, dtype, cache)
        stderr.print(f"{self}; {_held(needed, asked)}")
        _check_fits(needed)
        mesh = llama_jax.make_mesh(**dataclasses.asdict(self))
        with status(f"loading {checkpoint}"):
            return llama_jax.load(checkpoint, mesh=mesh, dtype=dtype), lambda: None

    def __str__(self) -> str:
        import jax

        kind = jax.devices()[0].device_kind
        among = f" of {jax.process_count()} processes" if jax.process_count() > 1 else ""
        return (
            f"mesh: data={self.data} fsdp={self.fsdp} tensor={self.tensor} "
            f"over {self._size} devices ({kind}){among}"
        )

    @property
    def _size(self) -> int:
        return self.data * self.fsdp * self.tensor

    def _check_there(self) -> None:
        import jax

        there, asked = len(jax.devices()), f"--data x --fsdp x --tensor is {self._size}"
        if jax.process_count() > 1 and self._size != there:
            raise ValueError(
                f"{asked} and the {jax.process_count()} processes have {there} devices; a mesh "
                f"takes all of them, such as --tensor {there}"
            )
        if self._size > there:
            have = "there is one device" if there == 1 else f"there are {there} devices"
            cpu = f", or add --cpu-devices {self._size} to make as many of this machine's CPU"
            way_out = cpu if jax.default_backend() == "cpu" else ""
            raise ValueError(f"{asked} and {have}; lower one of the three{way_out}")

    def _needed(
        self, checkpoint: Path, dtype: str, cache: Callable[[Source], tuple[int, int]]
    ) -> tuple[Memory, tuple[int, int]]:
        import jax

        from llama_jax.checkpoint.inspection import memory
        from llama_jax.checkpoint.reading import open_checkpoint

        source = open_checkpoint(checkpoint)
        rows, positions = cache(source)
        positions = min(positions, source.config.max_seq_len)
        sizes = dataclasses.asdict(self)
        wide = (
            "float32" if jax.default_backend() == "cpu" else None
        )  # as sharding.cache_dtype has it
        needed = memory(
            source.config,
            dtype=dtype,
            batch=rows,
            context=positions,
            cache_dtype=wide,
            **sizes,
        )
        return needed, (rows, positions)


def _held(needed: Memory, asked: tuple[int, int]) -> str:
    from llama_jax.checkpoint.files.destination import in_units

    rows, positions = asked
    weights, cache = in_units(needed.weights_per_device), in_units(needed.cache_per_device)
    text = f"{rows} row{'s' * (rows != 1)} of up to {positions:,} tokens"
    return f"on each: weights {weights}, cache up to {cache} for {text}"


def _check_fits(needed: Memory) -> None:
    """Refuses weights for which a device says that it has no room; a CPU says nothing."""
    import jax

    from llama_jax.checkpoint.files.destination import in_units

    for device in jax.local_devices():
        limit = (device.memory_stats() or {}).get("bytes_limit")
        if limit is not None and needed.weights_per_device > limit:
            raise ValueError(
                f"the weights are more than the {in_units(limit)} that JAX has of each device; "
                "raise --tensor or --fsdp, or XLA_CLIENT_MEM_FRACTION"
            )


def _cut_cpu(count: int | None) -> None:
    if count is None:
        return
    import jax

    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError as error:
        raise ValueError(f"--cpu-devices {count} comes too late: {error}") from error


def _join(distributed: bool, start_timeout: float, **place: Any) -> None:
    """Becomes one of several processes, of which process 0 alone speaks from here on."""
    if not distributed:
        if given := [name for name, value in place.items() if value is not None]:
            raise ValueError(f"--{given[0]} says which of several processes; add --distributed")
        return
    job.initialize(**place, start_timeout=start_timeout)
    # Whatever C++ writes to stdout, as Gloo does, is no part of what was asked for.
    silence = os.open(os.devnull, os.O_WRONLY)
    sys.stdout.flush()
    own = os.dup(1) if job.is_first() else silence
    os.dup2(silence, 1)
    sys.stdout = os.fdopen(own, "w", encoding=sys.stdout.encoding, errors=sys.stdout.errors)
    if not job.is_first():
        sys.stderr = os.fdopen(os.dup(silence), "w")
