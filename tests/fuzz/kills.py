"""`python -m tests.fuzz.kills`: what writes a checkpoint killed, at random or at each system call.

Convert, save, the exports, the saving of adapters, which links the base's files, and training's
saves of its states.

After each the destination is absent or whole, and the next run ends as it should. A killed process
is a child of one that has imported JAX, and in turn checks what the one before it left.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]
os.environ["JAX_PLATFORMS"] = "cpu"

from fuzz.jobs import forked  # noqa: E402
from fuzz.seeds import make  # noqa: E402
from fuzz.states import ABSENT, DTYPES, read_newest, save_next  # noqa: E402
from fuzz.trials import Operation, Trial, begin, counting, operations, with_library  # noqa: E402

Tell = Callable[[dict[str, Any]], None]


@dataclasses.dataclass(frozen=True)
class Kill:
    """When a process is killed: so many seconds after it began to write, or at which call."""

    seconds: float = 0.0
    call: int = 0


NEVER = Kill()


def killed(name: str, trial: Trial, kills: Iterator[Kill]) -> bool:
    """Kills a process at each; whether none left a broken checkpoint or failed after another."""
    found, count, late = collections.Counter[str](), 0, 0
    for number, kill in enumerate([*kills, NEVER]):
        told = child(lambda tell, n=number, kill=kill: _step(trial, n, tell, kill), trial.to)
        found[told[0]["state"]] += bool(number)
        if "again" not in told[1]:
            found[f"failed: {told[1]['error']}"] += 1
        count += kill is not NEVER and len(told) == 2
        late += kill is not NEVER and len(told) > 2
    left = sorted(file.name for file in trial.to.parent.iterdir() if file != trial.to)
    wrong = {what: n for what, n in found.items() if what not in (ABSENT, *DTYPES)}
    print(
        f"{name:16} {count} killed, and {late} ended before: {dict(found)}; left beside it: {left}",
        flush=True,
    )
    return not wrong and not left


def at_random(trial: Trial, count: int, rng: random.Random) -> Iterator[Kill]:
    """Kills within the time that an undisturbed writing takes."""
    took = [child(lambda tell: _step(trial, 0, tell), trial.to)[2]["seconds"] for _ in range(5)]
    return (Kill(seconds=max(1e-6, rng.random() * min(took))) for _ in range(count))


def at_calls(trial: Trial, part: int, parts: int) -> Iterator[Kill]:
    """A kill at each system call of a writing, of those in a share."""
    calls = child(lambda tell: _step(trial, 0, tell), trial.to)[2]["calls"]
    return (Kill(call=call) for call in range(1 + part, calls + 1, parts))


def _step(trial: Trial, number: int, tell: Tell, kill: Kill = NEVER) -> None:
    """Says what is there, writes it anew, and once more, to be killed then.

    Every other time nothing is there when it is killed, and else a whole one of the other dtype.
    """
    tell({"state": trial.state()})
    before, after = DTYPES if number % 4 < 2 else reversed(DTYPES)
    try:
        trial.operation.act(trial.to, before)
        if (state := trial.state()) != before:
            raise ValueError(f"{state}, and it was {before}")
    except (OSError, ValueError) as error:
        tell({"error": str(error)})
        return
    tell({"again": before})
    if number % 2:
        shutil.rmtree(trial.to)
    library = counting(trial.to.parent, kill.call, -1) if "LD_PRELOAD" in os.environ else None
    began = time.monotonic()
    if kill.seconds:  # the kernel ends the process then, and no Python runs
        signal.setitimer(signal.ITIMER_REAL, kill.seconds)
    trial.operation.act(trial.to, after)
    seconds = time.monotonic() - began
    tell({"seconds": seconds, "calls": library.faults_counted() if library else 0})


def child(action: Callable[[Tell], Any], to: Path) -> list[dict[str, Any]]:
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
    if status not in (0, signal.SIGALRM, signal.SIGKILL):
        raise AssertionError(log.read_text()[-2000:])
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _begun(operation: Operation, to: Path) -> Trial:
    """A trial that a child has begun: this process must stay without JAX's threads."""
    return Trial(operation, to, child(lambda tell: tell(begin(operation, to).sound), to)[0])


def main() -> None:
    said = argparse.ArgumentParser(prog="python -m tests.fuzz.kills", description=__doc__)
    said.add_argument("--kills", type=int, default=20, help="of each operation, at random")
    said.add_argument("--seed", type=int, default=0, help="of the kills' times")
    said.add_argument("--calls", action="store_true", help="a kill at each system call instead")
    said.add_argument("--share", default="0/1", help="of the calls, such as 2/3: every third")
    said.add_argument("--only", action="append", help="an operation")
    given = said.parse_args()
    if given.calls and "LD_PRELOAD" not in os.environ:
        with_library("tests.fuzz.kills")
    fine = True
    with tempfile.TemporaryDirectory() as root:
        seeds = Path(root) / "seeds"
        child(lambda tell: make(seeds), Path(root) / "made" / "x")
        saves = {"training's saves": Operation(save_next, read_newest)}
        for name, operation in {**operations(seeds), **saves}.items():
            if given.only and name not in given.only:
                continue
            to = Path(root) / name.replace(" ", "-").replace("'", "") / "model"
            to.parent.mkdir()
            trial = _begun(operation, to)
            if given.calls:
                kills = at_calls(trial, *map(int, given.share.split("/")))
            else:
                kills = at_random(trial, given.kills, random.Random(f"{name} {given.seed}"))
            fine &= killed(name, trial, kills)
    raise SystemExit(0 if fine else 1)


if __name__ == "__main__":
    main()
