"""Bytes that this process holds on the device."""

from __future__ import annotations

import jax


def memory_stats() -> dict[str, int | None]:
    """What it holds now, and what it held at the most; None where the device does not count."""
    stats = jax.devices()[0].memory_stats() or {}
    return {"held": stats.get("bytes_in_use"), "peak": stats.get("peak_bytes_in_use")}
