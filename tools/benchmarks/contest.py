"""Rounds: one short measurement of each contestant after the other, again and again."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.entrants import BATCHES, CONTESTANTS, OURS
from benchmarks.llama2c_file import BOS, SPACE
from benchmarks.models import Model
from benchmarks.worker import MACHINE
from benchmarks.workers import Worker

PROMPT = 16
"""Tokens before those that are decoded."""
FEW = 4
"""New tokens that must be equal in float32."""
Rates = dict[str, dict[str, list[float]]]


@dataclasses.dataclass(frozen=True)
class Effort:
    """How much of one model is measured."""

    rounds: int
    new: int
    """Tokens decoded a row."""
    prefill: int
    """Tokens of the prompt that is read."""
    first_tokens: int
    """Processes started a contestant; 0 leaves this out."""

    def within(self, model: Model) -> Effort:
        """The same, of no more positions than the model has."""
        room = model.config.max_seq_len
        new, prefill = min(self.new, room - PROMPT), min(self.prefill, room - 1)
        if new < FEW:
            raise ValueError(f"max_seq_len={room} leaves {PROMPT} prompt tokens no room to decode")
        return dataclasses.replace(self, new=new, prefill=prefill)


def prompts(model: Model, length: int, count: int) -> list[list[int]]:
    """Random ids, the same for everybody, beginning as llama2.c begins."""
    numbers = np.random.default_rng(length)
    drawn = numbers.integers(SPACE + 1, model.config.vocab_size, (count, length))
    drawn[:, :2] = BOS, SPACE
    return drawn.tolist()


def contest(loaded: dict[str, Worker], model: Model, effort: Effort) -> Iterator[dict[str, Any]]:
    """Holds each contestant to our outputs, measures them in alternation; all, after each round."""
    machine, workers = loaded[MACHINE], {k: v for k, v in loaded.items() if k != MACHINE}
    decoded = {name: _decoded(workers, name, model, effort) for name in workers}
    memory = {name: _memory(worker, name, model, effort) for name, worker in workers.items()}
    # Only now: the logits of a whole prompt are no part of what anybody's users hold.
    agreement = checked(workers, decoded, model, effort)
    rates: Rates = {name: {} for name in [*workers, MACHINE]}
    for count in range(effort.rounds):
        one: Rates = {name: {} for name in rates}
        _round(_turned(workers, count), machine, model, effort, one)
        rates = {name: _joined(rates[name], one[name]) for name in rates}
        yield {"agreement": agreement, "memory": memory, "rates": rates}


def _joined(before: dict[str, list[float]], one: dict[str, list[float]]) -> dict[str, list[float]]:
    return {measure: [*before.get(measure, []), *found] for measure, found in one.items()}


def _decoded(
    workers: dict[str, Worker], name: str, model: Model, effort: Effort
) -> dict[int, list[list[int]]]:
    """What a contestant writes, by batch size; what it compiles gets compiled on the way."""
    found = {}
    for batch in CONTESTANTS[name].batches:
        rows = prompts(model, PROMPT, batch)
        found[batch] = workers[name].ask("decode", prompts=rows, new=effort.new)["tokens"]
        if lengths := {len(row) for row in found[batch]} - {effort.new}:
            raise ValueError(f"{name} decoded {lengths.pop()} tokens where {effort.new} were asked")
    return found


def _memory(worker: Worker, name: str, model: Model, effort: Effort) -> dict[str, Any]:
    if CONTESTANTS[name].prefills:
        worker.ask("prefill", prompt=prompts(model, effort.prefill, 1)[0])
    return {**worker.ready, "peak_bytes": worker.ask("peak_memory")["bytes"]}


def checked(
    workers: dict[str, Worker],
    decoded: dict[str, dict[int, list[list[int]]]],
    model: Model,
    effort: Effort,
) -> dict[str, Any]:
    """How far each contestant's outputs are from ours; ValueError where that is too far."""
    prompt = prompts(model, effort.prefill, 1)[0]
    logits = {
        name: np.array(worker.ask("logits", prompt=prompt)["logits"])
        for name, worker in workers.items()
        if CONTESTANTS[name].prefills
    }
    found = {}
    for name in workers:
        same = equal_beginnings(decoded[OURS], decoded[name])
        apart = distance(logits[OURS], logits[name]) if name in logits else None
        check_agreement(name, model.dtype, same, apart)
        found[name] = {"tokens": same, "of": effort.new, "logits": apart}
    return found


def equal_beginnings(ours: dict[int, list[list[int]]], theirs: dict[int, list[list[int]]]) -> int:
    """How many tokens every row that both decoded has in common before the first that differs."""
    least = []
    for batch, rows in theirs.items():
        for mine, other in zip(ours[batch], rows, strict=True):
            equal = [a == b for a, b in zip(mine, other, strict=True)]
            least.append(equal.index(False) if False in equal else len(equal))
    return min(least)


def distance(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The root mean square of the difference, as a part of the deviation of ours."""
    return float(np.sqrt(np.mean((ours - theirs) ** 2)) / np.std(ours))


def check_agreement(name: str, dtype: str, same: int, apart: float | None) -> None:
    """ValueError if a contestant does not compute what we do, as well as its dtype allows.

    Two right programs may round to different sides of a tie, and in bfloat16 they soon do: there
    the logits alone decide, and in float32 the first few tokens as well.
    """
    limit = 5e-3 if dtype == "float32" else 0.05
    if apart is not None and not apart <= limit:
        raise ValueError(
            f"{name}'s logits are {apart:.2g} of a deviation from ours, and {limit} is the most "
            "that rounding explains: one of us computes another model"
        )
    if dtype == "float32" and same < FEW:
        raise ValueError(f"{name} writes other tokens than we do after {same}, where ties are rare")


def _turned(workers: dict[str, Worker], count: int) -> dict[str, Worker]:
    """The same in another order: who goes first, and after whom, changes with the round."""
    names = list(workers)
    first = count % len(names)
    return {name: workers[name] for name in names[first:] + names[:first]}


def _round(
    workers: dict[str, Worker], machine: Worker, model: Model, effort: Effort, rates: Rates
) -> None:
    """Neighbours in time are one measure of different contestants."""

    def keep(name: str, measure: str, answer: dict[str, Any]) -> None:
        rates[name].setdefault(measure, []).append(answer["rate"])

    for dtype in sorted({"float32", model.dtype}):
        keep(MACHINE, f"matrix {dtype}", machine.ask("matrix", dtype=dtype))
    for batch in BATCHES:
        keep(MACHINE, f"bandwidth {batch}", machine.ask("bandwidth"))
        for name, worker in workers.items():
            if batch in CONTESTANTS[name].batches:
                rows = prompts(model, PROMPT, batch)
                keep(name, f"decode {batch}", worker.ask("decode", prompts=rows, new=effort.new))
    prompt = prompts(model, effort.prefill, 1)[0]
    for name, worker in workers.items():
        if CONTESTANTS[name].prefills:
            keep(name, "prefill", worker.ask("prefill", prompt=prompt))
