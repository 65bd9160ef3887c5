"""Rounds: one short measurement of each contestant after the other, again and again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bench.agreement import agreement, outputs_of_all
from bench.effort import PROMPT, Effort, prompts
from bench.entrants import BATCHES, CONTESTANTS
from bench.models import Model
from bench.worker import MACHINE
from bench.workers import Worker

Rates = dict[str, dict[str, list[float]]]
"""By contestant and measure, a number a round; the machine's bandwidth has more."""


def contest(loaded: dict[str, Worker], model: Model, effort: Effort) -> Iterator[dict[str, Any]]:
    """Holds each contestant to our outputs, measures them in alternation; all, after each round."""
    machine, workers = loaded[MACHINE], {k: v for k, v in loaded.items() if k != MACHINE}
    outputs, failed = outputs_of_all(workers, model, effort)
    about = {
        "agreement": agreement(outputs, model.dtype, effort.new),
        "memory": {name: one.memory for name, one in outputs.items()},
        "failed": failed,
    }
    rates: Rates = {name: {} for name in [*outputs, MACHINE]}
    for count in range(effort.rounds):
        one: Rates = {name: {} for name in rates}
        turn = {name: workers[name] for name in turned(list(outputs), count)}
        _round(turn, machine, model, effort, one)
        rates = {name: joined(rates[name], one[name]) for name in rates}
        yield {**about, "rates": rates}


def joined(before: dict[str, list[float]], one: dict[str, list[float]]) -> dict[str, list[float]]:
    """One round's numbers after those of the rounds before."""
    return {measure: [*before.get(measure, []), *found] for measure, found in one.items()}


def turned(names: list[str], count: int) -> list[str]:
    """The same in another order: who goes first, and after whom, changes with the round."""
    first = count // 2 % len(names)
    order = names[first:] + names[:first]
    return order[::-1] if count % 2 else order


def _store(workers: dict[str, Worker], rows: int) -> None:
    """Has each store its weights for so many rows, before anything is timed."""
    for worker in workers.values():
        worker.ask("store", rows=rows)


def _round(
    workers: dict[str, Worker], machine: Worker, model: Model, effort: Effort, rates: Rates
) -> None:
    """Neighbours in time are one measure of different contestants.

    The bandwidth changes within seconds: what stands beside a decoding is the mean of what was
    read right before and right after it.
    """

    def keep(name: str, measure: str, rate: float) -> float:
        rates[name].setdefault(measure, []).append(rate)
        return rate

    for dtype in sorted({"float32", model.dtype}):
        keep(MACHINE, f"matrix {dtype}", machine.ask("matrix", dtype=dtype)["rate"])
    for batch in BATCHES:
        measure, rows = f"bandwidth {batch}", prompts(model, PROMPT, batch)
        _store(workers, batch)
        before = keep(MACHINE, measure, machine.ask("bandwidth")["rate"])
        for name, worker in workers.items():
            if batch in CONTESTANTS[name].batches:
                answer = worker.ask("decode", prompts=rows, new=effort.new)
                keep(name, f"decode {batch}", answer["rate"])
                after = keep(MACHINE, measure, machine.ask("bandwidth")["rate"])
                keep(name, measure, (before + after) / 2)
                before = after
    prompt = prompts(model, effort.prefill, 1)[0]
    _store(workers, 1)
    for name, worker in workers.items():
        if CONTESTANTS[name].prefills:
            keep(name, "prefill", worker.ask("prefill", prompt=prompt)["rate"])
