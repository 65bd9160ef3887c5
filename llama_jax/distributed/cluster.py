"""Which process of a job this is, as the arguments or a scheduler say."""

from __future__ import annotations

import os
from typing import Any


class UnknownProcessError(ValueError):
    """Neither the arguments nor a scheduler say which process of a job this is."""


def detected(
    coordinator: str | None, processes: int | None, process: int | None
) -> tuple[str, int, int, Any]:
    """What is not given, as `jax.distributed.initialize` would find it."""
    from jax._src.clusters import ClusterEnv  # the roll call needs it earlier than JAX does

    given = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS"), processes, process
    local_devices: Any = None
    address, count, number = given
    if None in given:
        found = ClusterEnv.auto_detect_unset_distributed_params(*given, None, None, None)
        address, count, number, local_devices = found
        if "JAX_LOCAL_DEVICE_IDS" in os.environ:
            local_devices = None  # JAX reads it
    if address is None or count is None or number is None:
        raise UnknownProcessError(
            "neither Slurm nor Open MPI nor Kubernetes says which process this is; pass "
            "coordinator=, its host:port, processes=, how many, and process=, which of them"
        )
    if not 0 <= number < count:
        raise ValueError(f"process={number} must be from 0 to processes - 1 = {count - 1}")
    return address, count, number, local_devices


def address_of(coordinator: str) -> tuple[str, int]:
    """The host and the port of HOST:PORT; ValueError where it is none."""
    host, _, port = str(coordinator).rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ValueError(f"coordinator={coordinator!r} must be HOST:PORT, such as node1:1234")
    return host.strip("[]"), int(port)
