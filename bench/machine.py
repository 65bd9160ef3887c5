"""What the machine does in a second: bytes that it reads, numbers that XLA multiplies on it."""

from __future__ import annotations

import ctypes
import os
import platform
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

BYTES = 512 << 20  # many times a last-level cache
DEVICE_BYTES = 4 << 30  # a millisecond and more on a GPU of today
SECONDS = 0.3


class Machine:
    """Measured in the same rounds as the contestants.

    No step decodes faster than its weights are read. XLA's own rate is a yardstick and no limit:
    another library may multiply faster.
    """

    def __init__(self, device: str, dtype: str) -> None:
        self.device = device
        self._read = _HostReading() if device == "cpu" else _DeviceReading()
        self._multiplied = {name: Multiplying(device, name) for name in {"float32", dtype}}

    def bandwidth(self) -> float:
        """Bytes read in a second."""
        return _rate(self._read, self._read.bytes)

    def matrix(self, dtype: str) -> float:
        """Multiplications and additions in a second, in XLA's product of two square matrices."""
        product = self._multiplied[dtype]
        return _rate(product, 2 * product.size**3)


def _rate(run: Any, amount: int) -> float:
    runs, start = 0, time.perf_counter()
    while time.perf_counter() - start < SECONDS:
        run()
        runs += 1
    return runs * amount / (time.perf_counter() - start)


class _HostReading:
    """One `memchr` a core, each through its own part of an array, for a byte that is not there.

    The C library's is vectorised and keeps nothing, ctypes lets go of the interpreter's lock, and
    no compiler is needed; NumPy's sums reach about two thirds of it.
    """

    bytes = BYTES

    def __init__(self) -> None:
        import numpy as np

        self.array = np.ones(BYTES, np.uint8)
        self.threads = len(os.sched_getaffinity(0))
        self.pool = ThreadPoolExecutor(self.threads)
        self.memchr = ctypes.CDLL(None).memchr
        self.memchr.restype = ctypes.c_void_p
        self.memchr.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]

    def __call__(self) -> None:
        part = BYTES // self.threads
        starts = [self.array.ctypes.data + i * part for i in range(self.threads)]
        list(self.pool.map(lambda start: self.memchr(start, 0, part), starts))


class _DeviceReading:
    """A reduction to one number by XLA, of so much that starting it takes no part of the time."""

    def __init__(self) -> None:
        import jax
        import jax.numpy as jnp

        memory = (jax.devices()[0].memory_stats() or {}).get("bytes_limit", 4 * BYTES)
        self.bytes = device_bytes(memory)
        self.array = jnp.ones(self.bytes // 4, jnp.float32)
        self.reduced = jax.jit(jnp.sum)
        self()

    def __call__(self) -> None:
        self.reduced(self.array).block_until_ready()


def device_bytes(memory: int) -> int:
    """How much is read at once, in whole numbers of four bytes, on a device of so much memory."""
    return min(DEVICE_BYTES, memory // 16 * 4)


class Multiplying:
    """XLA's product of two square matrices, of 2048 rows each on a CPU and 8192 on a GPU.

    On a CPU the result is rounded after it: asked for a 16-bit one, XLA there first widens both.
    """

    def __init__(self, device: str, dtype: str) -> None:
        import jax
        import jax.numpy as jnp

        self.size = 2048 if device == "cpu" else 8192
        self.matrix = jnp.ones((self.size, self.size), dtype)
        precision = "highest" if dtype == "float32" else None
        summed = jnp.float32 if device == "cpu" else None

        def product(x: jax.Array) -> jax.Array:
            out = jnp.matmul(x, x, precision=precision, preferred_element_type=summed)
            return out.astype(dtype)

        self.product = jax.jit(product)
        self()

    def __call__(self) -> None:
        self.product(self.matrix).block_until_ready()


def described(device: str) -> dict[str, Any]:
    """The processor, its cores in use, the memory and the system, for the record."""
    cpu = platform.processor() or platform.machine()
    for line in _lines("/proc/cpuinfo"):
        if line.startswith("model name"):
            cpu = line.split(":", 1)[1].strip()
            break
    found = {
        "processor": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }
    return {**found, "device": device}


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []
