"""`python -m bench`: what it does with its options."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench import against, lock, record, slots, table
from bench.contest import contest
from bench.effort import PROMPT, Effort, prompts
from bench.entrants import BATCHES, CONTESTANTS, OURS, absent, versions
from bench.first_token import first_tokens
from bench.machine import described
from bench.models import Model, check_space, config_of, prepared, unwritten_bytes
from bench.options import DOCUMENT, PLOT, parser, settle
from bench.worker import MACHINE
from bench.workers import running

QUICK = {
    "tiny": Effort(rounds=2, new=65, prefill=64, first_tokens=1),
    "M": Effort(rounds=3, new=17, prefill=512, first_tokens=0),
}
FULL = {"M": Effort(rounds=15, new=25, prefill=512, first_tokens=15)}
OTHERS = {True: Effort(5, 49, 512, 2), False: Effort(15, 97, 512, 15)}
"""Of any shape or checkpoint that the two tables leave out, by whether the run is quick. One new
token is the prompt's; of the others we decode eight at a time on a GPU, so theirs is a multiple."""
ERRORS = ValueError, RuntimeError, OSError


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures as the options say, prints a table, writes JSON, and the document if asked."""
    options = parser().parse_args(arguments)
    try:
        settle(options)
        if options.compare:
            print(against.comparison(*map(against.read, (options.compare, options.against))))
            return
        with lock.held(options.work, record.command(sys.argv[1:])):
            _run(options)
    except ERRORS as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def _run(options: argparse.Namespace) -> None:
    """Whatever ends a run, what was measured until then is shown and kept."""
    earlier = against.read(options.against) if options.against else None
    if earlier:
        _check_peers(options, earlier)
    result: dict[str, Any] = {}
    try:
        with contextlib.closing(_results(options)) as results:
            for result in results:
                record.keep(options.output, result)
    except (*ERRORS, KeyboardInterrupt) as error:
        if result:
            result = {**result, "unfinished": (str(error) or "interrupted").splitlines()[0]}
            print(_table(options, result), flush=True)
            record.keep(options.output, result)
            _tell(f"what was measured is in {options.output}")
        raise
    text = _table(options, result)
    if earlier:
        text += f"\n\n{against.comparison(result, earlier)}"
    print(text, flush=True)
    _tell(f"the numbers are in {options.output}")
    if options.slots:
        slots.plot(result, PLOT if options.docs else options.work / PLOT.name)
        text += f"\n\n![Decode's cost against the slots in use]({PLOT.name})"
    if options.docs:
        table.write_docs(DOCUMENT, options.name, text)
        _tell(record.publish(record.PUBLISHED, options.name, result))


def _check_peers(options: argparse.Namespace, earlier: dict[str, Any]) -> None:
    """ValueError if no peer of the earlier run takes part: runs are compared by ratios to peers."""
    before = {(model, peer) for _, model, peer, _ in against.ratios(earlier)}
    reasons = {}
    for name, peer in sorted(before & {(m, p) for m in options.names for p in options.contestants}):
        of = config_of(name, options.checkpoint), options.dtype, options.device, options.llama2c
        reasons[peer] = absent(peer, *of)
    if not reasons or all(reasons.values()):
        why = "; ".join(f"{peer}: {why}" for peer, why in reasons.items())
        raise ValueError(
            "runs are compared by their ratios to peers, and no peer of the earlier run takes part "
            f"in this one ({why or 'it has none of these models and contestants'})"
        )


def _table(options: argparse.Namespace, result: dict[str, Any]) -> str:
    return table.slots_table(result) if options.slots else table.markdown(result)


def _results(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """All that is measured so far, after every round."""
    start = time.monotonic()
    about = {
        "command": record.command(sys.argv[1:]),
        "date": datetime.date.today().isoformat(),
        "source": record.source(),
        "machine": {**described(options.device), "gpu": options.gpu},
        "dtype": options.dtype,
        "load": os.getloadavg(),
    }
    for found in _slots(options) if options.slots else _contests(options):
        spent = {"load_at_end": os.getloadavg(), "seconds": time.monotonic() - start}
        yield {**about, **found, **spent}


def _slots(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    of = "S-long", None, options.dtype, {"native"}, options.work
    check_space(options.work, unwritten_bytes(*of))
    model = prepared(*of)
    given = {OURS: _given(options, OURS, model, {1: max(slots.SLOTS)})}
    rounds = options.rounds or (2 if options.quick else 7)
    with running(given, options.work / "logs") as (workers, _):
        for found in slots.costs(workers[OURS], model, rounds, _tell):
            yield {**found, "versions": versions([OURS])}


def _contests(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    check_space(options.work, sum(_unwritten(options, name) for name in options.names))
    models: dict[str, Any] = {}
    missing: list[str] = []
    taken: set[str] = set()
    for name in options.names:
        model = prepared(name, options.checkpoint, options.dtype, {"native"}, options.work)
        effort = effort_of(options, name).within(model)
        given, reasons = _entrants(options, model, effort)
        taken |= given.keys() - {MACHINE}
        before, about = missing, {"versions": versions(sorted(taken))}
        for found in _measured(given, model, effort, options.work / "logs"):
            models = {**models, name: found}
            others = {**reasons, **found["failed"]}
            missing = [*before, *(f"{peer} ({name}): {why}" for peer, why in others.items())]
            yield {"models": models, "absent": missing, **about}


def _unwritten(options: argparse.Namespace, name: str) -> int:
    """About how many bytes of a model are still to be written."""
    config = config_of(name, options.checkpoint)
    formats = {
        CONTESTANTS[contestant].format
        for contestant in options.contestants
        if not absent(contestant, config, options.dtype, options.device, options.llama2c)
    }
    return unwritten_bytes(name, options.checkpoint, options.dtype, formats, options.work)


def _entrants(
    options: argparse.Namespace, model: Model, effort: Effort
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """What each process is told that takes part, and why the others do not."""
    given, reasons = {MACHINE: _common(options)}, {}
    contexts = dict.fromkeys(BATCHES, PROMPT + effort.new)
    contexts[1] = max(contexts[1], effort.prefill + 1)
    for name in options.contestants:
        if reason := _not_ready(options, name, model):
            reasons[name] = reason
        else:
            given[name] = _given(options, name, model, contexts)
    return given, reasons


def _not_ready(options: argparse.Namespace, name: str, model: Model) -> str | None:
    """Why a contestant takes no part; None where it does, and its model is written."""
    if reason := absent(name, model.config, options.dtype, options.device, options.llama2c):
        return reason
    formats = {CONTESTANTS[name].format}
    try:
        prepared(model.name, options.checkpoint, options.dtype, formats, options.work)
    except RuntimeError as error:
        if name == OURS:
            raise
        return str(error)
    return None


def _measured(
    given: dict[str, dict[str, Any]], model: Model, effort: Effort, logs: Path
) -> Iterator[dict[str, Any]]:
    """One model's numbers after every round, and after every one of the first tokens."""
    sizes = {"config": model.config.to_json(), "prefill": effort.prefill, "new": effort.new}
    with running(given, logs) as (workers, unloaded):
        _tell(f"{model.name}: {', '.join(workers)} are loaded")
        for count, rounds in enumerate(contest(workers, model, effort)):
            failed = {**unloaded, **rounds["failed"]}
            found = {**sizes, **rounds, "failed": failed, "first_tokens": {}}
            _tell(f"{model.name}: round {count + 1} of {effort.rounds}")
            yield found
    if effort.first_tokens:
        processes = {name: given[name] for name in given if name in found["memory"]}
        prompt = prompts(model, PROMPT, 1)[0]
        rounds = first_tokens(processes, prompt, effort.first_tokens)
        for count, (times, silent) in enumerate(rounds):
            _tell(f"{model.name}: first tokens, round {count + 1} of {effort.first_tokens}")
            yield {**found, "first_tokens": times, "failed": {**found["failed"], **silent}}


def effort_of(options: argparse.Namespace, name: str) -> Effort:
    """How much is measured of a model, as the options say."""
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
