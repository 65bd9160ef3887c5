"""`python -m tests.fuzz.kills`: convert, export and save killed, or one of their calls failing.

After each the destination is absent or whole, and the next run ends as it should. A killed process
is a child of one that has imported JAX, and in turn checks what the one before it left.
"""

from __future__ import annotations

import argparse
import collections
import ctypes
import dataclasses
import errno
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]
os.environ["JAX_PLATFORMS"] = "cpu"

import orbax.checkpoint  # noqa: E402, F401  children have it then
from fuzz.flips import read  # noqa: E402
from fuzz.jobs import forked  # noqa: E402
from fuzz.seeds import make  # noqa: E402

import llama_jax  # noqa: E402
from llama_jax.checkpoint.convert import convert  # noqa: E402
from llama_jax.checkpoint.export import export  # noqa: E402

DTYPES = ("float32", "bfloat16")
"""Of the checkpoint before and of the one after, so that a mixture of both is neither."""
SOURCE = Path(__file__).with_name("faults.c")


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


# Kills


def kills(name: str, act: Callable[[Path, str], Any], to: Path, count: int, seed: int = 0) -> bool:
    """Kills so many processes; whether none left a broken checkpoint or failed after another."""
    rng, found = random.Random(f"{name} {seed}"), collections.Counter[str]()
    trial = Trial(act, to, _child(lambda tell: tell(begin(act, to).sound), to)[0])
    seconds = [_child(lambda tell: _step(trial, 0, tell), to)[2]["seconds"] for _ in range(5)]
    number, killed, longest = 0, 0, statistics.median(seconds)
    while True:
        after = None if killed == count else rng.random() * longest
        told = _child(lambda tell, n=number, after=after: _step(trial, n, tell, after), to)
        found[told[0]["state"]] += bool(number)
        if "again" not in told[1]:
            found[f"failed: {told[1]['error']}"] += 1
        if killed == count:
            break
        number, killed = number + 1, killed + (len(told) == 2)
    left = sorted(file.name for file in to.parent.iterdir() if file != to)
    wrong = {what: n for what, n in found.items() if what not in ("absent", *DTYPES)}
    print(
        f"{name:12} {count} kills within {longest * 1000:.0f} ms, and {number - count} came too "
        f"late: {dict(found)}; left beside it: {left}",
        flush=True,
    )
    return not wrong and not left


def _step(
    trial: Trial, number: int, tell: Callable[[dict[str, Any]], None], kill: float | None = None
) -> None:
    """Says what is there, writes it anew, and once more; killed then after so many seconds.

    Every other time nothing is there when it is killed, and else a whole one of the other dtype.
    """
    tell({"state": trial.state()})
    before, after = DTYPES if number % 4 < 2 else reversed(DTYPES)
    try:
        trial.act(trial.to, before)
        if (state := trial.state()) != before:
            raise ValueError(f"{state}, and it was {before}")
    except (OSError, ValueError) as error:
        return tell({"error": str(error)})
    tell({"again": before})
    if number % 2:
        shutil.rmtree(trial.to)
    began = time.monotonic()
    if kill is not None:  # the kernel ends the process then, and no Python runs
        signal.setitimer(signal.ITIMER_REAL, max(kill, 1e-6))
    trial.act(trial.to, after)
    tell({"seconds": time.monotonic() - began})


def _child(
    action: Callable[[Callable[[dict[str, Any]], None]], None], to: Path
) -> list[dict[str, Any]]:
    """What a child tells."""
    heard, told = os.pipe()

    def tell(said: dict[str, Any]) -> None:
        os.write(told, json.dumps(said).encode() + b"\n")

    log = to.parent.with_suffix(".log")
    pid = forked(log, lambda: action(tell))
    os.close(told)
    with os.fdopen(heard) as answer:
        lines = answer.readlines()
    _, status = os.waitpid(pid, 0)
    if status not in (0, signal.SIGALRM):
        raise AssertionError(log.read_text()[-2000:])
    return [json.loads(line) for line in lines if line.endswith("\n")]


# Failing system calls


def faults(name: str, act: Callable[[Path, str], Any], to: Path, share: tuple[int, int]) -> bool:
    """Fails each system call in turn, of those in a share; whether each ended as it should."""
    library, wrong, errors = ctypes.CDLL(None), 0, 0
    library.faults_failed.restype = ctypes.c_char_p
    trial, folder = begin(act, to), str(to.parent).encode()
    library.faults_begin(folder, 0, 0)
    act(to, DTYPES[0])
    calls = library.faults_counted()
    part, parts = share
    for turn in range(1 + part, calls + 1, parts):
        dtype = DTYPES[turn // 2 % 2]
        if turn % 2:
            shutil.rmtree(to)
        said: BaseException | None = None
        library.faults_begin(folder, turn, (errno.EIO, errno.ENOSPC)[turn % 2])
        try:
            act(to, dtype)
        except BaseException as error:
            said = error
        library.faults_begin(b"", 0, 0)
        state, call = trial.state(), library.faults_failed().decode()
        problem = _problem(said, state, dtype)
        act(to, dtype)
        if trial.state() != dtype or [file for file in to.parent.iterdir() if file != to]:
            problem = problem or f"the next run left {sorted(os.listdir(to.parent))}"
        errors += said is not None
        wrong += bool(problem)
        if problem:
            print(f"{name}: call {turn}, {call}, failed: {problem}")
    tried = len(range(1 + part, calls + 1, parts))
    print(
        f"{name:12} {tried} of {calls} calls failed in turn, {errors} said, {wrong} wrong",
        flush=True,
    )
    return not wrong


def _problem(said: BaseException | None, state: str, dtype: str) -> str:
    if said is None:
        return "" if state == dtype else f"no error, and it is {state}"
    if not isinstance(said, OSError | ValueError):
        return f"{type(said).__name__}: {said}"
    if len(str(said)) > 500 or "\n" in str(said):
        return f"an error of {len(str(said))} characters: {said}"
    return "" if state in ("absent", *DTYPES) else state


def _with_faults() -> None:
    """This program anew, with the calls of faults.c in front of the system's."""
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "faults.so"
        command = ["cc", "-O1", "-shared", "-fPIC", "-o", library, SOURCE, "-ldl"]
        subprocess.run(command, check=True)
        words = [sys.executable, "-m", "tests.fuzz.kills", *sys.argv[1:]]
        done = subprocess.run(words, env={**os.environ, "LD_PRELOAD": str(library)}, check=False)
    raise SystemExit(done.returncode)


def main() -> None:
    said = argparse.ArgumentParser(prog="python -m tests.fuzz.kills", description=__doc__)
    said.add_argument("--kills", type=int, default=20, help="of each operation")
    said.add_argument("--seed", type=int, default=0, help="of the kills' times")
    said.add_argument("--faults", action="store_true", help="system calls fail, in place of kills")
    said.add_argument("--share", default="0/1", help="of the calls, such as 2/3: every third")
    said.add_argument("--only", action="append", help="an operation")
    given = said.parse_args()
    if given.faults and "LD_PRELOAD" not in os.environ:
        _with_faults()
    fine = True
    with tempfile.TemporaryDirectory() as root:
        seeds = Path(root) / "seeds"
        if given.faults:
            make(seeds)
        else:
            _child(lambda tell: [make(seeds), tell({})], Path(root) / "made" / "x")
        for name, act in operations(seeds).items():
            if given.only and name not in given.only:
                continue
            folder = Path(root) / name.replace(" ", "-")
            folder.mkdir()
            if given.faults:
                part, parts = map(int, given.share.split("/"))
                fine &= faults(name, act, folder / "model", (part, parts))
            else:
                fine &= kills(name, act, folder / "model", given.kills, given.seed)
    raise SystemExit(0 if fine else 1)


if __name__ == "__main__":
    main()
