"""`python tools/bench.py`: its options, and what it does with them."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import slots, table
from benchmarks.columns import ITEMSIZE
from benchmarks.contest import PROMPT, Effort, contest, prompts
from benchmarks.entrants import BATCHES, CONTESTANTS, OURS, absent, versions
from benchmarks.first_token import first_tokens
from benchmarks.machine import described
from benchmarks.models import Model, prepared
from benchmarks.worker import MACHINE
from benchmarks.workers import running

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT, PLOT = ROOT / "docs" / "benchmarks.md", ROOT / "docs" / "decode_cost.svg"
QUICK = {
    "tiny": Effort(rounds=2, new=8, prefill=64, first_tokens=1),
    "M": Effort(rounds=3, new=12, prefill=512, first_tokens=0),
}
FULL = {"M": Effort(rounds=15, new=24, prefill=512, first_tokens=3)}
OTHERS = {True: Effort(5, 48, 512, 2), False: Effort(25, 96, 512, 9)}
"""Of any shape or checkpoint that the two tables leave out, by whether the run is quick."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures as the options say, prints a table, writes JSON, and the document if asked."""
    options = _parser().parse_args(arguments)
    try:
        _check(options)
        _run(options)
    except (ValueError, RuntimeError, OSError) as error:
        sys.exit(f"error: {error}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tools/bench.py", description=__doc__)
    add = parser.add_argument
    add("--quick", action="store_true", help="fewer rounds: under ten minutes on two cores")
    add("--shapes", default="S,M", help="random weights of these shapes: tiny, S, M (S,M)")
    add("--checkpoint", type=Path, help="measure this checkpoint, of any format, and no shape")
    add("--slots", action="store_true", help="decode's cost at 256 to 16,384 slots, ours alone")
    add("--device", choices=("cpu", "gpu"), default="cpu")
    add("--dtype", choices=tuple(ITEMSIZE), help="float32 on CPU, bfloat16 on a GPU")
    add("--contestants", default=",".join(CONTESTANTS), help="whom to measure (all there are)")
    add("--llama2c", metavar="PATH", help="llama2.c's compiled `run`")
    add("--threads", type=int, help="cores that each contestant gets (all)")
    add("--rounds", type=int, help="rounds of every model, in place of the usual number")
    work = Path(tempfile.gettempdir()) / "llama_jax_bench"
    add("--work", type=Path, default=work, help=f"where models and logs are kept ({work})")
    add("--output", type=Path, help="the JSON file (in --work, named for device and dtype)")
    add("--docs", action="store_true", help=f"put the table into {DOCUMENT.relative_to(ROOT)}")
    return parser


def _check(options: argparse.Namespace) -> None:
    """Refuses what cannot be done before anything is written or loaded; settles what is open."""
    options.dtype = options.dtype or ("float32" if options.device == "cpu" else "bfloat16")
    options.contestants = options.contestants.split(",")
    if unknown := sorted(set(options.contestants) - set(CONTESTANTS)):
        raise ValueError(f"contestant {unknown[0]!r} is unknown; use {', '.join(CONTESTANTS)}")
    if OURS not in options.contestants:
        raise ValueError(f"every ratio is to {OURS}; add it to --contestants")
    if options.rounds is not None and options.rounds < 1:
        raise ValueError(f"rounds={options.rounds} must be at least 1")
    cores = sorted(os.sched_getaffinity(0))
    options.threads = len(cores) if options.threads is None else options.threads
    if not 1 <= options.threads <= len(cores):
        raise ValueError(f"threads={options.threads} must be from 1 to {len(cores)}, the cores")
    if options.llama2c and not os.access(options.llama2c, os.X_OK):
        raise ValueError(f"--llama2c {options.llama2c} is no program; pass the compiled `run`")
    os.sched_setaffinity(0, cores[: options.threads])  # and so of every process started from here


def _run(options: argparse.Namespace) -> None:
    start = time.monotonic()
    result: dict[str, Any] = {
        "command": "python tools/bench.py " + " ".join(sys.argv[1:]),
        "date": datetime.date.today().isoformat(),
        "machine": described(options.device),
        "dtype": options.dtype,
    }
    result |= _slots(options) if options.slots else _contests(options)
    result["seconds"] = time.monotonic() - start
    name = f"{'slots-' if options.slots else ''}{options.device}-{options.dtype}"
    output = options.output or options.work / f"{name}.json"
    output.write_text(json.dumps(result, indent=1))
    text = table.slots_table(result) if options.slots else table.markdown(result)
    print(text)
    _tell(f"the numbers are in {output}")
    if options.slots:
        slots.plot(result, PLOT if options.docs else options.work / PLOT.name)
        text += f"\n\n![Decode's cost against the slots in use]({PLOT.name})"
    if options.docs:
        table.write_docs(DOCUMENT, name, text)


def _slots(options: argparse.Namespace) -> dict[str, Any]:
    model = prepared("S-long", None, options.dtype, {"native"}, options.work)
    given = {OURS: _given(options, OURS, model, {1: max(slots.SLOTS)})}
    rounds = options.rounds or (2 if options.quick else 7)
    with running(given, options.work / "logs") as workers:
        found = slots.costs(workers[OURS], model, rounds, _tell)
    return {**found, "versions": versions([OURS])}


def _contests(options: argparse.Namespace) -> dict[str, Any]:
    checkpoint = options.checkpoint
    names = [checkpoint.resolve().name] if checkpoint else options.shapes.split(",")
    models: dict[str, Any] = {}
    missing: list[str] = []
    taken: set[str] = set()
    for name in names:
        model = prepared(name, checkpoint, options.dtype, {"native"}, options.work)
        effort = _effort(options, name).within(model)
        given = {MACHINE: _common(options)}
        for contestant in options.contestants:
            terms = model.config, options.dtype, options.device, options.llama2c
            if reason := absent(contestant, *terms):
                missing.append(f"{contestant} ({name}): {reason}")
                continue
            contexts = dict.fromkeys(BATCHES, PROMPT + effort.new)
            contexts[1] = max(contexts[1], effort.prefill + 1)
            given[contestant] = _given(options, contestant, model, contexts)
        formats = {CONTESTANTS[contestant].format for contestant in given if contestant != MACHINE}
        prepared(name, checkpoint, options.dtype, formats, options.work)
        models[name] = _measured(given, model, effort, options.work / "logs")
        taken |= given.keys() - {MACHINE}
    return {"models": models, "absent": missing, "versions": versions(sorted(taken))}


def _measured(
    given: dict[str, dict[str, Any]], model: Model, effort: Effort, logs: Path
) -> dict[str, Any]:
    with running(given, logs) as workers:
        _tell(f"{model.name}: {', '.join(workers)} are loaded")
        found = contest(workers, model, effort, _tell)
    processes = {name: fields for name, fields in given.items() if name != MACHINE}
    times = {}
    if effort.first_tokens:
        prompt = prompts(model, PROMPT, 1)[0]
        times = first_tokens(processes, prompt, effort.first_tokens)
    sizes = {"config": model.config.to_json(), "prefill": effort.prefill, "new": effort.new}
    return {**sizes, **found, "first_tokens": times}


def _effort(options: argparse.Namespace, name: str) -> Effort:
    effort = (QUICK if options.quick else FULL).get(name, OTHERS[options.quick])
    return dataclasses.replace(effort, rounds=options.rounds or effort.rounds)


def _common(options: argparse.Namespace) -> dict[str, Any]:
    return {"device": options.device, "dtype": options.dtype, "threads": options.threads}


def _given(
    options: argparse.Namespace, name: str, model: Model, contexts: dict[int, int]
) -> dict[str, Any]:
    """What a contestant's process is told on its command line."""
    entry = CONTESTANTS[name]
    own = {"module": entry.module, "path": str(model.path(entry.format))}
    return {**_common(options), **own, "contexts": contexts, "binary": options.llama2c}


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
