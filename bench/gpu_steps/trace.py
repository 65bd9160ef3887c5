"""Where a device's time goes, read from the trace that JAX's profiler writes."""

from __future__ import annotations

import collections
import dataclasses
import gzip
import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

LONGEST = 10
HOLDING = ("while", "cond", "call")
"""Instructions of a CPU whose time is that of others."""
HOST_GAP = 10.0
"""Microseconds: a device that rests for longer waits for the host, not for its own next kernel."""


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One launch of a kernel, in microseconds."""

    name: str
    start: float
    end: float


def traced(run: Callable[[], Any], folder: Path) -> list[Kernel]:
    """The kernels that ran while `run` did, which waits for the device itself."""
    shutil.rmtree(folder, ignore_errors=True)
    with jax.profiler.trace(str(folder)):
        run()
    paths = sorted(folder.rglob("*.trace.json.gz"))
    if not paths:
        raise ValueError(f"the profiler wrote no trace.json.gz in {folder}")
    events = json.loads(gzip.decompress(paths[-1].read_bytes()))["traceEvents"]
    shutil.rmtree(folder, ignore_errors=True)
    return kernels_of(events)


def kernels_of(events: Sequence[dict[str, Any]]) -> list[Kernel]:
    """The launches in a trace: a GPU's streams, or the instructions that a CPU ran."""
    named: dict[str, dict[Any, str]] = {"process_name": {}, "thread_name": {}}
    for event in events:
        if event.get("ph") == "M" and event.get("name") in named:
            key = event["pid"], event.get("tid") if event["name"] == "thread_name" else None
            named[event["name"]][key] = event["args"].get("name", "")
    devices = {pid for (pid, _), name in named["process_name"].items() if "/device:GPU" in name}
    lines = {key: name for key, name in named["thread_name"].items() if key[0] in devices}
    # A line that JAX derives from the streams shows the same time once more.
    streams = {key for key, name in lines.items() if name.startswith("Stream")}
    streams = streams or {key for key, name in lines.items() if name == "XLA Ops"}
    found = [
        Kernel(event["name"], event["ts"], event["ts"] + event["dur"])
        for event in events
        if event.get("ph") == "X" and "dur" in event and _is_launch(event, streams)
    ]
    return sorted(found, key=lambda kernel: kernel.start)


def _is_launch(event: dict[str, Any], streams: set[tuple[Any, Any]]) -> bool:
    if streams:
        return (event["pid"], event.get("tid")) in streams
    return "hlo_op" in event.get("args", {}) and not event["name"].startswith(HOLDING)


def summary(kernels: Sequence[Kernel], count: int) -> dict[str, Any]:
    """Of `count` tokens, or prompts: what each took on the average, in microseconds."""
    if not kernels:
        raise ValueError("the trace has no kernels of a device")
    rests = gaps(kernels)
    waits = [rest for rest in rests if rest > HOST_GAP]
    span = max(kernel.end for kernel in kernels) - kernels[0].start
    return {
        "launches": round(len(kernels) / count, 1),
        "span_us": round(span / count, 1),
        "busy_us": round((span - sum(rests)) / count, 1),
        "small_gaps_us": round((sum(rests) - sum(waits)) / count, 1),
        "host_gaps_us": round(sum(waits) / count, 1),
        "host_gaps": len(waits),
        "longest_gap_us": round(max(rests, default=0.0), 1),
        "longest": longest(kernels, count),
    }


def gaps(kernels: Sequence[Kernel]) -> list[float]:
    """How long the device rested each time, between kernels in the order of their starts."""
    found, end = [], kernels[0].end
    for kernel in kernels[1:]:
        if kernel.start > end:
            found.append(kernel.start - end)
        end = max(end, kernel.end)
    return found


def longest(kernels: Sequence[Kernel], count: int) -> list[dict[str, Any]]:
    """The kinds of kernels that took the most time: those that differ by a number are one."""
    took: dict[str, float] = collections.defaultdict(float)
    launches: collections.Counter[str] = collections.Counter()
    for kernel in kernels:
        kind = re.sub(r"([._]\d+)+$", "", kernel.name)[:70]
        took[kind] += kernel.end - kernel.start
        launches[kind] += 1
    whole = sum(took.values())
    first = sorted(took, key=took.__getitem__, reverse=True)[:LONGEST]
    return [
        {
            "kernel": kind,
            "us": round(took[kind] / count, 2),
            "launches": round(launches[kind] / count, 2),
            "share": round(took[kind] / whole, 4) if whole else 0.0,
        }
        for kind in first
    ]
