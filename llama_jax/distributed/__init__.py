"""A job of several processes: `jax.distributed`, and a clear end of all where one ends badly."""

from __future__ import annotations

import atexit
import sys
from collections.abc import Callable
from typing import Any

from llama_jax.distributed.cluster import UnknownProcessError, address_of, detected
from llama_jax.distributed.connection import LOST_AFTER
from llama_jax.distributed.roll_call import gather, report
from llama_jax.distributed.watch import Watch

__all__ = ["START_TIMEOUT", "UnknownProcessError", "fail", "from_first", "initialize", "is_first"]

START_TIMEOUT = 60.0
"""Seconds that the processes of a job wait for one another."""
_watch: Watch | None = None


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
    coordinator, processes, process, local_devices = detected(coordinator, processes, process)
    host, port = address_of(coordinator)
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
