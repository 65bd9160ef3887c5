"""The options of a mesh, for the commands that run a model."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_jax.cli import options
from llama_jax.cli.compiling import notice_compiling
from llama_jax.cli.console import UsageError, status, stderr
from llama_jax.cli.loading import load_ahead
from llama_jax.cli.processes import Processes

if TYPE_CHECKING:
    from llama_jax.checkpoint.source import Source
    from llama_jax.model.memory import Memory
    from llama_jax.weights.params import Params


@dataclasses.dataclass(frozen=True)
class Devices(Processes, options.Mesh):
    """The mesh that a model is to lie on, and the devices and processes that make it up."""

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
        meanwhile: Callable[[], None] = lambda: None,
    ) -> tuple[Params, Callable[[], None]]:
        """`load`, while a thread takes the steps of `prepare`, which gets the weights' shapes.

        On one device alone; the function returned waits for the thread's end. What is to be done
        `meanwhile` is done before the weights are read.
        """

        import llama_jax
        from llama_jax.untraced import find_untraced

        self._check_there()
        find_untraced()
        notice_compiling()
        mesh = None
        if self._size > 1:
            mesh = llama_jax.make_mesh(**self.axes)
            needed, asked = self._needed(checkpoint, weights, mesh, cache)
            stderr.print(f"{self}; {_held(needed, asked)}")
            _check_fits(needed)
        with status(f"loading {checkpoint}"):
            if mesh is None and prepare is not None:
                return load_ahead(checkpoint, prepare, meanwhile, **weights.how)
            meanwhile()
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
