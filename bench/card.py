"""The GPU that is measured on: which card it is, and the versions of what drives it."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import subprocess
import sys
from typing import Any

from bench.worker import MACHINE
from bench.workers import environment

PACKAGES = (
    "jax-cuda12-plugin",
    "jax-cuda13-plugin",
    "nvidia-cudnn-cu12",
    "nvidia-cudnn-cu13",
)
_ASKED = """
import json, jax
device = jax.devices()[0]
cuda = device.client.platform_version.splitlines()[-1]
print(json.dumps({"card": device.device_kind, "cuda": cuda}))
"""


def described(threads: int) -> dict[str, Any]:
    """What JAX, the driver and the packages say of it; ValueError where JAX finds none.

    JAX is asked in a process that ends: the parent holds no part of the device.
    """
    env = environment(MACHINE, "gpu", threads)
    command = [sys.executable, "-c", _ASKED]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:]
        reason = f" ({last[0]})" if last and ": " in last[0] else ""
        raise ValueError(f"JAX finds no GPU here{reason}; install jax[cuda13], or use the CPU")
    found = json.loads(done.stdout.splitlines()[-1])
    return {**found, "driver": _driver(), "packages": _packages()}


def shown(gpu: dict[str, Any]) -> str:
    """The same in words."""
    packages = [f"{name} {version}" for name, version in gpu["packages"].items()]
    driver = f"driver {gpu['driver'] or 'unknown'}"
    return f"{gpu['card']} ({', '.join([driver, gpu['cuda'], *packages])})"


def _driver() -> str | None:
    """Its version; None where no nvidia-smi tells."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True)
    return None if done.returncode else done.stdout.splitlines()[0].strip()


def _packages() -> dict[str, str]:
    found = {}
    for distribution in importlib.metadata.distributions():
        if (name := distribution.metadata["Name"]) in PACKAGES:
            found[name] = distribution.version
    return dict(sorted(found.items()))
