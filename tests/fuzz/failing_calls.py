"""`python -m tests.fuzz.failing_calls`: each system call of what writes fails in turn.

After each the destination is absent or whole, the error is one line, and the next run ends as it
should: convert, save, the exports, the saving of adapters, which links the base's files, and
training's saves, whose earlier states stay.
"""

from __future__ import annotations

import argparse
import errno
import itertools
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]
os.environ["JAX_PLATFORMS"] = "cpu"

from fuzz.seeds import make  # noqa: E402
from fuzz.states import DTYPES, KEPT, newest, save  # noqa: E402
from fuzz.trials import Operation, begin, counting, operations, with_library  # noqa: E402

from llama_jax.train.saves import hush_log  # noqa: E402

SAVES = "training's saves"
_REMOVING = ("unlink", "unlinkat", "rmdir")
"""Where one of these fails, something is left, until the next run."""
_ERRORS = (errno.EIO, errno.ENOSPC)


def faults(name: str, operation: Operation, to: Path, part: int, parts: int) -> bool:
    """Fails each system call in turn, of those in a share; whether each ended as it should."""
    act, trial, tried, errors, wrong = operation.act, begin(operation, to), 0, 0, 0
    calls = counting(to.parent)
    act(to, DTYPES[0])
    count = calls.faults_counted()
    for turn in range(1 + part, count + 1, parts):
        dtype = DTYPES[turn // 2 % 2]
        if turn % 2:
            shutil.rmtree(to)
        said, call = _failing(to.parent, turn, lambda dtype=dtype: act(to, dtype))
        state = trial.state()
        problem = _in_words(said)
        if said is None and state != dtype:
            problem = f"no error, and it is {state}"
        if state not in ("absent", *DTYPES):
            problem = state
        if said is not None and call not in _REMOVING and (left := _beside(to)):
            problem = problem or f"it left {left}"
        act(to, dtype)
        if trial.state() != dtype or _beside(to):
            problem = problem or f"the next run wrote {trial.state()} and left {_beside(to)}"
        tried, errors, wrong = tried + 1, errors + (said is not None), wrong + bool(problem)
        if problem:
            print(f"{name}: call {turn}, {call}, failed: {problem}")
    print(f"{name:16} {tried} of {count} calls failed, {errors} said, {wrong} wrong", flush=True)
    return not wrong


def _beside(to: Path) -> list[str]:
    return sorted(file.name for file in to.parent.iterdir() if file != to)


def saves(folder: Path, part: int, parts: int) -> bool:
    """Fails each system call of a state's save in turn; whether the others stay, and it goes on."""
    hush_log()
    tried = errors = wrong = 0
    sound = folder.with_name("sound")
    for step in (1, 2):
        save(sound, step)
    for turn in itertools.count(1 + part, parts):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(sound, folder)
        said, call = _failing(folder, turn, lambda: save(folder, 3))
        if call is None:
            break
        problem, (step, told) = _in_words(said), newest(folder)
        if told or step not in ((3,) if said is None else (2, 3)):
            problem = f"the newest state is {step}, and of others: {told}"
        save(folder, 4)
        left, again = {one.name for one in folder.iterdir()}, newest(folder)
        if again != (4, []) or len(left) > KEPT or not left < {"2", "3", "4"}:
            problem = problem or f"the next save left {sorted(left)}, and the newest is {again}"
        tried, errors, wrong = tried + 1, errors + (said is not None), wrong + bool(problem)
        if problem:
            print(f"{SAVES}: call {turn}, {call}, failed: {problem}")
    print(
        f"{SAVES:16} {tried} of {turn - 1} calls failed, {errors} said, {wrong} wrong", flush=True
    )
    return not wrong


def _failing(
    folder: Path, turn: int, act: Callable[[], Any]
) -> tuple[BaseException | None, str | None]:
    """What an action raises when a call of it fails, and that call; None where it has fewer."""
    said: BaseException | None = None
    library = counting(folder, turn, _ERRORS[turn % 2])
    try:
        act()
    except BaseException as error:
        said = error
    reached = library.faults_counted() >= turn
    counting(None)
    return said, library.faults_failed().decode() if reached else None


def _in_words(said: BaseException | None) -> str:
    """What is wrong with an error."""
    if said is None:
        return ""
    if not isinstance(said, OSError | ValueError):
        return f"{type(said).__name__}: {said}"
    if len(str(said)) > 500 or "\n" in str(said):
        return f"an error of {len(str(said))} characters: {said}"
    return ""


def main() -> None:
    said = argparse.ArgumentParser(prog="python -m tests.fuzz.failing_calls", description=__doc__)
    said.add_argument("--share", default="0/1", help="of the calls, such as 2/3: every third")
    said.add_argument("--only", action="append", help="an operation")
    given = said.parse_args()
    if "LD_PRELOAD" not in os.environ:
        with_library("tests.fuzz.failing_calls")
    part, parts = map(int, given.share.split("/"))
    fine = True
    with tempfile.TemporaryDirectory() as root:
        seeds = Path(root) / "seeds"
        make(seeds)
        for name, operation in operations(seeds).items():
            if not given.only or name in given.only:
                to = Path(root) / name.replace(" ", "-") / "model"
                to.parent.mkdir()
                fine &= faults(name, operation, to, part, parts)
        if not given.only or SAVES in given.only:
            fine &= saves(Path(root) / "run" / "states", part, parts)
    raise SystemExit(0 if fine else 1)


if __name__ == "__main__":
    main()
