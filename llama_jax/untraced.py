"""Compiled programs that a later process finds without tracing them.

JAX finds a kept program by its text, for which Python must trace it: half a second for a model's
step. Here it is found by all that its text follows from: this package's source, the arguments'
shapes, the versions, JAX's settings and the machine.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
import pickle
import platform
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax.experimental import serialize_executable

from llama_jax.kept_programs import are_kept, compiling_anew, keep, read_kept

MADE = 16
"""Programs of this process that are remembered, the newest ones."""
_FLAGS = ("XLA_", "TF_XLA_", "LIBTPU_")
"""How variables of the environment begin that change what XLA makes. JAX's own are settings."""
_made: OrderedDict[str, Any] = OrderedDict()
_found_here = threading.Event()


def find_untraced() -> None:
    """From here on this process finds programs without tracing them, where JAX keeps programs.

    A command says so, whose functions are as our files state them. In the process of somebody who
    puts a function of theirs in the place of one of ours a program of ours would be wrong.
    """
    _found_here.set()


def runner(jitted: Any, *arguments: Any, **statics: Any) -> Callable[..., Any]:
    """What runs `jitted` on such arguments: its program, or where none is kept `jitted` itself."""
    key = _key(jitted, arguments, statics)
    if key is None:
        return functools.partial(jitted, **statics)
    return _remembered(key, jitted, arguments, statics)


def compiled(jitted: Any, *arguments: Any, **statics: Any) -> Any:
    """`jitted.lower(*arguments, **statics).compile()`, or what an earlier process made of it.

    Arguments are arrays or shapes. A program is found only after `find_untraced`, where JAX keeps
    programs in our folder, and only one for a single device.
    """
    key = _key(jitted, arguments, statics)
    if key is None:
        return jitted.lower(*arguments, **statics).compile()
    return _remembered(key, jitted, arguments, statics)


def _remembered(key: str, jitted: Any, arguments: Any, statics: dict[str, Any]) -> Any:
    """The program of a key, which this process made or found already, or finds or makes now."""
    program = _made.get(key) or _found(key, jitted, arguments, statics)
    _made[key] = program
    while len(_made) > MADE:
        _made.popitem(last=False)
    return program


def _found(key: str, jitted: Any, arguments: Any, statics: dict[str, Any]) -> Any:
    """The program that is kept under a key; it is compiled, and kept, where there is none."""
    kept = read_kept(key)
    if kept is None:
        with compiling_anew() as was_compiled:
            program = jitted.lower(*arguments, **statics).compile()
            if was_compiled():
                keep(key, _packed(program))
        return program
    # What XLA does not take back is traced, and found as JAX finds it.
    return _unpacked(kept, arguments) or jitted.lower(*arguments, **statics).compile()


def _packed(program: Any) -> bytes:
    """A program as bytes; none where XLA, or a plugin, does not give it away."""
    try:
        return pickle.dumps(serialize_executable.serialize(program))
    except Exception:
        return b""


def _unpacked(kept: bytes, arguments: Any) -> Any:
    """The program that was packed, if it can be loaded here."""
    try:
        program, takes, gives = pickle.loads(kept)
        if takes != jax.tree.structure((arguments, {})):  # settings of a weight that no text shows
            return None
        device = _device(arguments)
        return serialize_executable.deserialize_and_load(
            program, takes, gives, device.client, [device]
        )
    except Exception:
        return None


def _key(jitted: Any, arguments: Any, statics: dict[str, Any]) -> str | None:
    """The program's name in the folder; None where it is not to be kept there."""
    if not _found_here.is_set() or not are_kept():
        return None
    device = _device(arguments)
    if device is None or not jax.sharding.get_abstract_mesh().empty:
        return None
    leaves, tree = jax.tree.flatten(arguments)
    shapes = [(x.shape, str(x.dtype), getattr(x, "weak_type", False)) for x in leaves]
    what = jitted.__module__, jitted.__qualname__, sorted(statics.items()), str(tree), shapes
    where = device.id, device.device_kind, device.client.platform_version, device.platform
    # A setting may hold for this thread alone.
    values = sorted(jax.config.values.items())
    settings = [(name, value, getattr(jax.config, name, value)) for name, value in values]
    text = repr((what, where, settings)).encode()
    return "untraced-" + hashlib.sha256(_environment() + text).hexdigest()


def _device(arguments: Any) -> Any:
    """The device on which all arguments lie; None where they lie on several."""
    devices = {device for leaf in jax.tree.leaves(arguments) for device in _devices(leaf)}
    if len(devices) > 1:
        return None
    return devices.pop() if devices else jax.devices()[0]


def _devices(leaf: Any) -> Any:
    sharding = getattr(leaf, "sharding", None)  # a NumPy array has none, a shape perhaps
    return () if sharding is None else sharding.device_set


@functools.cache
def _environment() -> bytes:
    """A digest of the source, the versions, the processor and XLA's flags."""
    digest = hashlib.sha256()
    folder = Path(__file__).parent
    for file in sorted(folder.rglob("*.py")):
        digest.update(f"{file.relative_to(folder)}\0".encode() + file.read_bytes() + b"\0")
    versions = [importlib.metadata.version(name) for name in ("jax", "jaxlib", "numpy")]
    flags = sorted(item for item in os.environ.items() if item[0].startswith(_FLAGS))
    digest.update(repr((sys.version, versions, flags, _processor())).encode())
    return digest.digest()


def _processor() -> list[str]:
    """What XLA compiles a CPU's program for."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    said = [platform.platform(), platform.processor(), str(cores)]
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return said
    told = ("model name", "flags", "Features", "CPU part")
    return said + sorted({line for line in lines if line.startswith(told)})
