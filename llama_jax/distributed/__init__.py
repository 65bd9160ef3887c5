"""A job of several processes: `jax.distributed`, and a clear end of all where one ends badly."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable
from typing import Any

from llama_jax.distributed.connection import LOST_AFTER
from llama_jax.distributed.roll_call import gather, report
from llama_jax.distributed.watch import Watch

__all__ = ["START_TIMEOUT", "UnknownProcessError", "fail", "from_first", "initialize", "is_first"]

START_TIMEOUT = 60.0
"""Seconds that the processes of a job wait for one another."""
_watch: Watch | None = None


class UnknownProcessError(ValueError):
    """Neither the arguments nor a scheduler say which process of a job this is."""


def initialize(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    *,
    start_timeout: float = START_TIMEOUT,
) -> None:
    """Joins this process to a job, before it uses JAX: the devices of all are then `jax.devices()`.

    Without arguments it asks what `jax.distributed` asks: Slurm, Open MPI, Kubernetes.
    `coordinator` is process 0's "host:port", `processes` how many there are, `process` which one
    this is.

    UnknownProcessError where nobody says which process this is, and ValueError where one never
    comes. Afterwards one that dies, or ends in an exception, ends all others with a line on stderr
    that says which.
    """
    global _watch
    import jax  # which a command that answers at once does without

    if _watch is not None:
        raise ValueError("this process has joined a job already")
    coordinator, processes, process, local_devices = _detected(coordinator, processes, process)
    host, port = _address(coordinator)
    if process == 0:
        lines, hosts = gather(port, processes, start_timeout)
    else:
        lines, hosts = report((host, port), process, processes, start_timeout)
    _watch = Watch(process, lines, hosts)
    _watch.start()
    _end_on_exceptions()
    # JAX's service for preemptions swallows SIGTERM, by which schedulers end a process.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        coordinator,
        processes,
        process,
        local_device_ids=local_devices,
        cluster_detection_method="deactivate",  # done above
        initialization_timeout=max(1, int(start_timeout)),
        heartbeat_timeout_seconds=LOST_AFTER + 10,  # for what a line does not tell
    )
    jax.devices()  # the processes tell one another theirs, for which each must ask
    atexit.register(_watch.leave)


def is_first() -> bool:
    """Whether this is process 0, or the only one."""
    return _watch is None or _watch.process == 0


def from_first(make: Callable[[], Any]) -> Any:
    """What `make` returns in process 0 (anything that JSON can say), in every process of the job.

    It runs in process 0 alone. A ValueError or an OSError of its is raised there as it is, and as a
    ValueError of the same words in every other process.
    """
    if _watch is None:
        return make()
    if _watch.process:
        told = _watch.received()
        if "error" in told:
            raise ValueError(told["error"])
        return told["value"]
    try:
        value = make()
    except (ValueError, OSError) as error:
        _watch.share({"error": str(error)})
        raise
    _watch.share({"value": value})
    return value


def fail(said: str | None) -> None:
    """Ends every process of the job, process 0 saying why; where there is no job, nothing."""
    if _watch is not None:
        _watch.fail(said)


def _detected(
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


def _address(coordinator: str) -> tuple[str, int]:
    host, _, port = str(coordinator).rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ValueError(f"coordinator={coordinator!r} must be HOST:PORT, such as node1:1234")
    return host.strip("[]"), int(port)


def _end_on_exceptions() -> None:
    """An exception that nobody catches ends the job, and is printed as ever.

    But for one that another process has caused: of its death each process says one line.
    """
    before = sys.excepthook

    def hook(kind: Any, error: Any, trace: Any) -> None:
        said = f"{kind.__name__}: {error}".splitlines()[0]
        if _watch is not None:
            _watch.fail(said, lambda: before(kind, error, trace))
        before(kind, error, trace)

    sys.excepthook = hook
