"""One run's ratios over the same ratios of an earlier run: how well a repeat repeats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.columns import columns_of
from benchmarks.entrants import OURS
from benchmarks.spread import paired, significant

Key = tuple[str, str, str]
"""A model, a peer, a measure."""


def read(path: Path) -> dict[str, Any]:
    """The numbers that a run wrote; ValueError if the file is none of a contest's."""
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}); pass what a run of this wrote") from None
    if not isinstance(found, dict) or not {"models", "dtype", "machine"} <= found.keys():
        raise ValueError(f"{path} holds no contest; pass what a run without --slots wrote")
    return found


def check_alike(earlier: dict[str, Any], device: str, dtype: str, names: list[str]) -> None:
    """ValueError if a run on this device, in this dtype, of these models is no repeat of it."""
    theirs, mine = f"{earlier['machine']['device']} in {earlier['dtype']}", f"{device} in {dtype}"
    if theirs != mine:
        raise ValueError(f"the earlier run is of the {theirs}, this one of the {mine}: no repeat")
    if not set(names) & earlier["models"].keys():
        raise ValueError(
            f"the earlier run is of {', '.join(earlier['models'])}, this one of "
            f"{', '.join(names)}: they have no model in common"
        )


def ratios(result: dict[str, Any]) -> dict[Key, float]:
    """The median of each ratio to a peer."""
    found = {}
    for model, one in result["models"].items():
        for column in columns_of(one, result["dtype"]):
            measure = column.title.split(" (")[0]
            for peer, theirs in column.values.items():
                if peer != OURS and theirs:
                    found[model, peer, measure] = paired(column.values[OURS], theirs).median
    return found


def comparison(result: dict[str, Any], earlier: dict[str, Any]) -> str:
    """A row for each ratio that both have, and the one that differs most."""
    now, before = ratios(result), ratios(earlier)
    common = {key: now[key] / before[key] for key in now if key in before}
    if not common:
        raise ValueError("the two runs have no ratio in common; measure a peer that both have")
    lines = ["| ratio | earlier | this run | this run / earlier |", "|---|---|---|---|"]
    for key, over in common.items():
        cells = [_named(key), *(significant(value) for value in (before[key], now[key], over))]
        lines.append(f"| {' | '.join(cells)} |")
    worst = max(common, key=lambda key: abs(common[key] - 1))
    most = f"{100 * abs(common[worst] - 1):.1f} %"
    date = earlier.get("date", "unknown date")
    lines += ["", f"Against the run of {date} the largest difference is {most} ({_named(worst)})."]
    return "\n".join(lines)


def _named(key: Key) -> str:
    model, peer, measure = key
    return f"{model}: {OURS} / {peer}, {measure}"
