"""Training against torch, in turns: `python -m bench.train`.

    python -m bench.train --shapes S        tokens a second, beside torch and transformers
    python -m bench.train --shapes 1M,3M    the same of small models
    python -m bench.train --text FILE       nanoGPT's recipe for a CPU on a text's characters

All begin with the same float32 weights and read the same rows at the same learning rates, every
core for everybody. Their losses must agree before anything is timed. Each is a process of its own
and takes a few steps in its turn; a ratio is of two neighbours in time.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.contest import turned
from bench.entrants import OURS
from bench.lock import held
from bench.record import command, keep, source
from bench.training.report import curve_table, draw, speed_table
from bench.training.work import NANOGPT, WORKS, write
from bench.workers import running
from llama_jax.cli.huge_pages import HUGE_PAGES, TUNABLES

PROGRAM, NAMES = "bench.training.worker", (OURS, "torch", "transformers")
STEPS, FEW = 2000, 3
AGREE = 1e-3
"""By how much, relatively, the first losses may differ."""


def parser() -> argparse.ArgumentParser:
    """Every option."""
    found = argparse.ArgumentParser(prog="bench.train", description=__doc__.splitlines()[0])
    add = found.add_argument
    add("--shapes", default="S,1M,3M", help=f"of {', '.join(WORKS)} (S,1M,3M)")
    add("--rounds", type=int, default=10, help="turns of each (10)")
    add("--text", type=Path, help="train nanoGPT's recipe on this text, and no shape")
    add("--steps", type=int, default=STEPS, help=f"of that recipe ({STEPS})")
    add("--plot", type=Path, help="its curves as a picture, an SVG")
    add("--peers", default="torch,transformers", help="(torch,transformers); of a text torch alone")
    add("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of each (all cores)")
    work = Path(tempfile.gettempdir()) / "llama_jax_bench_train"
    add("--work", type=Path, default=work, help=f"where models and logs are kept ({work})")
    add("--output", type=Path, help="the JSON file (train.json in --work)")
    return found


def main(arguments: list[str] | None = None) -> None:
    """Measures as the options say, prints tables and keeps the JSON."""
    given = sys.argv[1:] if arguments is None else arguments
    options = parser().parse_args(given)
    try:
        _check(options)
        os.environ.setdefault(TUNABLES, HUGE_PAGES)  # as `llama-jax train` has it; the peers too
        with held(options.work, command(given, "bench.train")):
            about = {"command": command(given, "bench.train"), "source": source()}
            result = {**about, "date": time.strftime("%F"), "load": os.getloadavg()}
            _measure(options, result)
    except (OSError, ValueError, RuntimeError) as error:
        sys.exit(f"error: {error}")


def _check(options: argparse.Namespace) -> None:
    options.names = options.shapes.split(",")
    options.peers = ["torch"] if options.text else options.peers.split(",")
    if unknown := [name for name in options.names if name not in WORKS]:
        raise ValueError(f"shape {unknown[0]!r} is unknown; use {', '.join(WORKS)}")
    if unknown := [name for name in options.peers if name not in NAMES[1:]]:
        raise ValueError(f"peer {unknown[0]!r} is unknown; use {', '.join(NAMES[1:])}")
    for name, least in (("rounds", 1), ("steps", 2)):
        if getattr(options, name) < least:
            raise ValueError(f"--{name} {getattr(options, name)} must be at least {least}")
    options.output = options.output or options.work / "train.json"


def _measure(options: argparse.Namespace, result: dict[str, Any]) -> None:
    """One model after the other; the file is whole after each."""
    if options.text:
        result["nanogpt"] = _curves(options)
        print(curve_table(result["nanogpt"]))
        if options.plot:
            draw(result["nanogpt"], options.plot)
    for name in () if options.text else options.names:
        result.setdefault("shapes", {})[name] = one = _speeds(name, options)
        print(speed_table(name, one), flush=True)
        keep(options.output, result | {"load_at_end": os.getloadavg()})
    keep(options.output, result | {"load_at_end": os.getloadavg()})


def _started(name: str, folder: Path, steps: int, options: argparse.Namespace) -> Any:
    given = {"program": PROGRAM, "work": name, "folder": str(folder), "steps": steps}
    fields = {**given, "device": "cpu", "threads": options.threads}
    names = [OURS, *options.peers]
    return running({one: fields for one in names}, folder / "logs")


def _speeds(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Tokens a second of each contestant, a number a round."""
    work, folder = WORKS[name], options.work / name
    steps = FEW + options.rounds * work.steps
    write(work, folder, steps, None)
    with _started(name, folder, steps, options) as (workers, failed):
        check_losses({one: worker.ask("train", steps=FEW) for one, worker in workers.items()})
        rates: dict[str, list[float]] = {one: [] for one in workers}
        for count in range(options.rounds):
            for one in turned(list(workers), count):
                seconds = workers[one].ask("train", steps=work.steps)["seconds"]
                rates[one].append(work.steps * work.batch * work.time / seconds)
    sizes = {"batch": work.batch, "time": work.time, "config": work.config.to_json()}
    return {**sizes, "rates": rates, "failed": failed, "threads": options.threads}


def check_losses(answers: dict[str, dict[str, Any]]) -> None:
    """RuntimeError where a peer's first losses are not ours: it trains another model."""
    ours = answers[OURS]["losses"]
    for name, answer in answers.items():
        for step, (mine, theirs) in enumerate(zip(ours, answer["losses"], strict=True), 1):
            if not abs(mine - theirs) <= AGREE * abs(mine):
                raise RuntimeError(
                    f"{name} has a loss of {theirs:.5f} at step {step}, and {OURS} {mine:.5f}"
                )


def _curves(options: argparse.Namespace) -> dict[str, Any]:
    """Each contestant's seconds and validation loss after every round of steps."""
    folder, work = options.work / "nanogpt", NANOGPT
    write(work, folder, options.steps, options.text.read_text(encoding="utf-8"))
    found: dict[str, list[dict[str, float]]] = {}
    seconds: dict[str, float] = {}
    with _started("nanogpt", folder, options.steps, options) as (workers, failed):
        for done in range(0, options.steps, work.steps):
            count = min(work.steps, options.steps - done)
            for one in turned(list(workers), done // work.steps):
                answer = workers[one].ask("train", steps=count)
                seconds[one] = seconds.get(one, 0.0) + answer["seconds"]
                loss = workers[one].ask("validation")["loss"]
                point = {"step": done + count, "seconds": seconds[one], "validation_loss": loss}
                found.setdefault(one, []).append(point | {"loss": answer["losses"][-1]})
    tokens = options.steps * work.batch * work.time
    return {"curves": found, "failed": failed, "tokens": tokens, "config": work.config.to_json()}


if __name__ == "__main__":
    main()
