"""Whether a recipe fits a device's memory, asked before anything is allocated."""

from __future__ import annotations

import dataclasses
import re

import jax

from llama_jax.checkpoint.files.messages import in_units
from llama_jax.free_memory import free_memory
from llama_jax.kernels import PLANNED_PLATFORM, devices_can_be_made
from llama_jax.train.plan import Plan


@dataclasses.dataclass(frozen=True)
class Device:
    """A kind of device, which need not be there."""

    name: str
    platform: str
    """As JAX names it."""
    memory: int
    """Bytes that a program can have."""


KNOWN = {
    "h100": Device("an H100 with 80 GB", PLANNED_PLATFORM, 84_929_347_584),
    "h200": Device("an H200 with 141 GB", PLANNED_PLATFORM, 141_000_000_000),
    "a100": Device("an A100 with 80 GB", PLANNED_PLATFORM, 80_000_000_000),
}
"""GPUs by the word for them."""


def named_device(name: str) -> Device:
    """A device by a word of `KNOWN`, or a GPU by its memory: "24GB"."""
    if known := KNOWN.get(name.lower()):
        return known
    if found := re.fullmatch(r"(\d+(?:\.\d+)?) ?GB", name, re.IGNORECASE):
        return Device(f"a GPU with {found[1]} GB", PLANNED_PLATFORM, int(float(found[1]) * 1e9))
    raise ValueError(
        f"device={name!r} is unknown; it is one of {', '.join(KNOWN)}, or its memory, as in 24GB"
    )


def device_here(devices: int) -> Device:
    """A device of this machine, `devices` of which are to be used."""
    first = jax.local_devices()[0]
    if devices_can_be_made(first.platform):  # of one memory
        here = min(devices, jax.local_device_count())
        return Device(
            "this machine" + (f", by {here}" if here > 1 else ""),
            first.platform,
            free_memory() // here,
        )
    stats = first.memory_stats() or {}
    return Device(f"this {first.device_kind}", first.platform, stats.get("bytes_limit", 2**62))


def check_fits(plan: Plan, device: Device) -> None:
    """ValueError where a plan takes more than a device's memory; it names the largest parts."""
    if plan.total <= device.memory:
        return
    largest = sorted(plan.parts.items(), key=lambda part: -part[1])[:3]
    parts = ", ".join(f"{name} {in_units(size)}" for name, size in largest)
    raise ValueError(
        f"the recipe takes {in_units(plan.total)} on each device ({parts}, ...), and {device.name} "
        f"has {in_units(device.memory)}; lower step.batch, raise step.micro_batches, let "
        "step.remat be 'layer', or cut the model over more devices (mesh.fsdp)"
    )
