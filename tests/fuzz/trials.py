"""What writes a checkpoint, and what became of it: for the kills and the failing system calls."""

from __future__ import annotations

import ctypes
import dataclasses
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint  # noqa: F401  children have it then
from fuzz.flips import read
from fuzz.states import ABSENT, DTYPES

import llama_jax
from llama_jax.checkpoint.convert import convert
from llama_jax.checkpoint.export import export
from llama_jax.checkpoint.saving import save_adapters
from llama_jax.sharding.adapters import random_adapters, with_adapters

ADAPTERS = "save adapters"
"""As training of adapters saves its model: the base's files are linked, not written again."""
ADAPTED = [("layers_0", "attention", "wq"), ("layers_1", "feed_forward", "w2")]
SOURCE = Path(__file__).with_name("faults.c")


@dataclasses.dataclass(frozen=True)
class Operation:
    """What writes a checkpoint to a path, of one dtype or the other, and what reads all of it."""

    act: Callable[[Path, str], Any]
    read: Callable[[Path], str] = read


def operations(seeds: Path) -> dict[str, Operation]:
    """What writes a checkpoint, by name."""
    native = seeds / "native"

    def saved(to: Path, dtype: str) -> None:
        llama_jax.save(llama_jax.load(native, dtype=dtype), to, overwrite=True)

    def adapted(to: Path, dtype: str) -> None:
        """A model whose adapters alone are other ones; the base is in its own dtype."""
        params = llama_jax.load(native)
        made = random_adapters(jax.random.key(0), params, ADAPTED, 2, 1.0)
        step = 1.0 + DTYPES.index(dtype)
        made = {path: dataclasses.replace(one, b=one.b + step) for path, one in made.items()}
        save_adapters(with_adapters(params, made), to)

    def exported(kind: str) -> Callable[[Path, str], Any]:
        return lambda to, dtype: export(native, to, format=kind, dtype=dtype, overwrite=True)

    kinds = {f"export {kind}": exported(kind) for kind in ("hf", "meta", "gguf")}
    acts = {
        "convert": lambda to, dtype: convert(seeds / "meta", to, dtype=dtype, overwrite=True),
        "save": saved,
        ADAPTERS: adapted,
        **kinds,
    }
    return {name: Operation(act) for name, act in acts.items()}


@dataclasses.dataclass(frozen=True)
class Trial:
    """One operation on one destination, and what a whole one reads as."""

    operation: Operation
    to: Path
    sound: dict[str, str]
    """The digests, by dtype."""

    def state(self) -> str:
        """absent, the dtype of what is whole, or what is wrong."""
        if not os.path.lexists(self.to):
            return ABSENT
        try:
            found = self.operation.read(self.to)
        except Exception as error:
            return f"broken: {error}"
        if found == ABSENT:
            return found
        return next((dtype for dtype, digest in self.sound.items() if digest == found), "mixed")


def begin(operation: Operation, to: Path) -> Trial:
    """A trial, once both checkpoints were written undisturbed."""
    sound = {}
    for dtype in DTYPES:
        operation.act(to, dtype)
        sound[dtype] = operation.read(to)
    assert sound["float32"] != sound["bfloat16"]
    return Trial(operation, to, sound)


def counting(folder: Path | None, turn: int = 0, number: int = 0) -> ctypes.CDLL:
    """The library of faults.c, which counts the system calls below a folder from here on.

    The call whose turn it is fails with an error's number, or ends the process where that is -1.
    """
    library = ctypes.CDLL(None)
    library.faults_failed.restype = ctypes.c_char_p
    library.faults_begin(str(folder or "").encode(), turn, number)
    return library


def with_library(module: str) -> None:
    """A program anew, with the calls of faults.c in front of the system's; ends this one."""
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "faults.so"
        command = ["cc", "-O1", "-shared", "-fPIC", "-o", library, SOURCE, "-ldl"]
        subprocess.run(command, check=True)
        words = [sys.executable, "-m", module, *sys.argv[1:]]
        done = subprocess.run(words, env={**os.environ, "LD_PRELOAD": str(library)}, check=False)
    raise SystemExit(done.returncode)
