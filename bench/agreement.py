"""Right before fast: what each contestant computes, held to what we do."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from bench.effort import FEW, PROMPT, Effort, prompts
from bench.entrants import CONTESTANTS, OURS
from bench.models import Model
from bench.workers import Worker, WorkerError


@dataclasses.dataclass(frozen=True)
class Outputs:
    """What a contestant computes before it is timed, and the memory that it takes."""

    decoded: dict[int, list[list[int]]]
    """New tokens of each row, by batch size."""
    logits: np.ndarray | None
    memory: dict[str, Any]


def outputs_of_all(
    workers: dict[str, Worker], model: Model, effort: Effort
) -> tuple[dict[str, Outputs], dict[str, str]]:
    """The outputs of all who can, and why a peer cannot: its process is ended.

    What they compile gets compiled on the way.
    """
    found, failed = {}, {}
    for name, worker in workers.items():
        try:
            found[name] = _outputs(worker, name, model, effort)
        except WorkerError as error:
            if name == OURS:
                raise
            worker.stop()
            failed[name] = error.reason
    return found, failed


def _outputs(worker: Worker, name: str, model: Model, effort: Effort) -> Outputs:
    entry, prompt = CONTESTANTS[name], prompts(model, effort.prefill, 1)[0]
    decoded = {}
    for batch in entry.batches:
        rows = prompts(model, PROMPT, batch)
        decoded[batch] = worker.ask("decode", prompts=rows, new=effort.new)["tokens"]
        if lengths := {len(row) for row in decoded[batch]} - {effort.new}:
            raise ValueError(f"{name} decoded {lengths.pop()} tokens where {effort.new} were asked")
    if entry.prefills:
        worker.ask("prefill", prompt=prompt)
    memory = {**worker.ready, "peak_bytes": worker.ask("peak_memory")["bytes"]}
    logits = None
    if entry.prefills:
        # Only now: the logits of a whole prompt are no part of what anybody's users hold.
        logits = np.array(worker.ask("logits", prompt=prompt)["logits"])
    return Outputs(decoded, logits, memory)


def agreement(found: dict[str, Outputs], dtype: str, new: int) -> dict[str, Any]:
    """How far each contestant's outputs are from ours; ValueError where that is too far."""
    agreed, ours = {}, found[OURS]
    for name, theirs in found.items():
        same = equal_beginnings(ours.decoded, theirs.decoded)
        apart = None if theirs.logits is None else distance(ours.logits, theirs.logits)
        check_agreement(name, dtype, same, apart)
        agreed[name] = {"tokens": same, "of": new, "logits": apart}
    return agreed


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
