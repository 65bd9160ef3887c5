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

import orbax.checkpoint  # noqa: F401  children have it then
from fuzz.flips import read

import llama_jax
from llama_jax.checkpoint.convert import convert
from llama_jax.checkpoint.export import export

SOURCE = Path(__file__).with_name("faults.c")
DTYPES = ("float32", "bfloat16")
"""Of the checkpoint before and of the one after, so that a mixture of both is neither."""


def operations(seeds: Path) -> dict[str, Callable[[Path, str], Any]]:
    """What writes a checkpoint to a path in a dtype, by name."""
    native = seeds / "native"

    def saved(to: Path, dtype: str) -> None:
        llama_jax.save(llama_jax.load(native, dtype=dtype), to, overwrite=True)

    def exported(kind: str) -> Callable[[Path, str], Any]:
        return lambda to, dtype: export(native, to, format=kind, dtype=dtype, overwrite=True)

    kinds = {f"export {kind}": exported(kind) for kind in ("hf", "meta", "gguf")}
    return {
        "convert": lambda to, dtype: convert(seeds / "meta", to, dtype=dtype, overwrite=True),
        "save": saved,
        **kinds,
    }


@dataclasses.dataclass(frozen=True)
class Trial:
    """One operation on one destination, and what a whole one reads as."""

    act: Callable[[Path, str], Any]
    to: Path
    sound: dict[str, str]
    """The digests, by dtype."""

    def state(self) -> str:
        """absent, the dtype of what is whole, or what is wrong."""
        if not os.path.lexists(self.to):
            return "absent"
        try:
            found = read(self.to)
        except Exception as error:
            return f"broken: {error}"
        return next((dtype for dtype, digest in self.sound.items() if digest == found), "mixed")


def begin(act: Callable[[Path, str], Any], to: Path) -> Trial:
    """A trial, once both checkpoints were written undisturbed."""
    sound = {}
    for dtype in DTYPES:
        act(to, dtype)
        sound[dtype] = read(to)
    assert sound["float32"] != sound["bfloat16"]
    return Trial(act, to, sound)


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
