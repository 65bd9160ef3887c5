"""What one model's measurements come to: a column a measure."""

from __future__ import annotations

import dataclasses
from typing import Any

from bench.entrants import BATCHES, OURS
from bench.shapes import ITEMSIZE, prefill_flops, read_per_step
from bench.spread import Spread, paired, spread_of
from bench.worker import MACHINE
from llama_jax.checkpoint.published import parameter_count
from llama_jax.config import Config

Values = dict[str, list[float]]
"""By contestant; one that a measure does not concern has none."""
ALIKE = 1.15
"""How many times one bandwidth may be another where two contestants met the same machine."""


@dataclasses.dataclass(frozen=True)
class Column:
    """One measure of every contestant."""

    kind: str
    """Which others it is judged with: rates, first tokens or memory."""
    title: str
    cells: dict[str, str]
    values: Values
    """What ratios are taken of, round by round."""
    bandwidths: Values
    """What the machine read beside each of them; empty where it was not asked."""

    def over(self, peer: str) -> Spread | None:
        """Our value over a peer's, of the rounds in which both met the same machine.

        Of all rounds where that would leave less than a third; None where the peer has none.
        """
        ours, theirs = self.values[OURS], self.values.get(peer)
        if not theirs:
            return None
        return paired(*_alike(ours, theirs, *map(self.bandwidths.get, (OURS, peer))))


def columns_of(one: dict[str, Any], dtype: str, device: str) -> list[Column]:
    """The columns of a model's table, from what `command` keeps of it."""
    config, machine = Config.from_json(one["config"]), one["rates"][MACHINE]
    step = read_per_step(config) * ITEMSIZE[dtype]
    found = []
    for batch in BATCHES:
        read = _measured(one, f"bandwidth {batch}")
        limits = {name: [batch * rate / step for rate in rates] for name, rates in read.items()}
        title = f"decode, batch {batch} (tokens/s; of the bandwidth limit)"
        found.append(_rates(title, _measured(one, f"decode {batch}"), limits, read))
    time = one["prefill"]
    yardstick = [rate * time / prefill_flops(config, time) for rate in machine[f"matrix {dtype}"]]
    title = f"prefill {time} (tokens/s; of XLA's matrix rate)"
    prefills = _measured(one, "prefill")
    found.append(_rates(title, prefills, dict.fromkeys(prefills, yardstick), {}))
    nbytes = parameter_count(config) * ITEMSIZE[dtype]
    if times := one["first_tokens"]:
        found += [_first_tokens(times, kind) for kind in ("cold", "cached")]
    found.append(_memory("peak once loaded (times the weights)", one, "loaded_bytes", nbytes))
    if times and all("peak" in own for own in times.values()):  # not in files of before
        found.append(_peaks(times, nbytes))
    if device == "gpu":  # what a CPU's allocator keeps of what was freed is not the same twice
        found.append(_memory("peak in all (times the weights)", one, "peak_bytes", nbytes))
    return found


def _measured(one: dict[str, Any], measure: str) -> Values:
    return {name: rates.get(measure, []) for name, rates in one["rates"].items() if name != MACHINE}


def _alike(
    ours: list[float],
    theirs: list[float],
    ours_read: list[float] | None,
    theirs_read: list[float] | None,
) -> tuple[list[float], list[float]]:
    """The pairs beside which the machine read alike."""
    if not (ours_read and theirs_read):
        return ours, theirs
    apart = [max(a / b, b / a) for a, b in zip(ours_read, theirs_read, strict=True)]
    kept = [i for i, times in enumerate(apart) if times <= ALIKE]
    if 3 * len(kept) < len(apart):
        return ours, theirs
    return [ours[i] for i in kept], [theirs[i] for i in kept]


def _rates(title: str, values: Values, machine: Values, bandwidths: Values) -> Column:
    cells = {name: spread_of(rates).text() for name, rates in values.items() if rates}
    for name in cells:
        if machine[name]:  # an earlier run may have measured none beside each
            cells[name] += f"; {paired(values[name], machine[name]).median:.2f}"
    return Column("rates", title, cells, values, bandwidths)


def _first_tokens(times: dict[str, Any], kind: str) -> Column:
    """A peer compiles nothing: its one time stands against ours of either kind."""
    cells = {name: spread_of(own[kind]).text() for name, own in times.items() if kind in own}
    values = {name: own.get(kind, own["cold"]) for name, own in times.items()}
    return Column("first tokens", f"first token, {kind} (s)", cells, values, {})


def _peaks(times: dict[str, Any], nbytes: int) -> Column:
    values = {name: [peak / nbytes for peak in own["peak"]] for name, own in times.items()}
    cells = {name: spread_of(peaks).text() for name, peaks in values.items()}
    title = "peak resident, first token (times the weights)"
    return Column("memory", title, cells, values, {})


def _memory(title: str, one: dict[str, Any], kind: str, nbytes: int) -> Column:
    """Whoever loads nothing until it is run, as llama2.c, shows nothing loaded."""
    values = {
        name: [own[kind] / nbytes] if own[kind] else [] for name, own in one["memory"].items()
    }
    cells = {name: f"{own[0]:.2f}" for name, own in values.items() if own}
    return Column("memory", title, cells, values, {})
