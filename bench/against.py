"""One run's ratios over the same ratios of an earlier run: how well a repeat repeats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.columns import columns_of
from bench.entrants import OURS
from bench.spread import significant

Key = tuple[str, str, str, str]
"""A kind of measure, a model, a peer, a measure."""


def read(path: Path) -> dict[str, Any]:
    """The numbers that a run wrote; ValueError if the file is none of a contest's."""
    if not path.is_file():
        raise ValueError(f"{path} is not there; pass the JSON file that an earlier run wrote")
    try:
        found = json.loads(path.read_text())
        ratios(found), found["date"], found["machine"]["device"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(
            f"{path} holds no contest; pass what a run without --slots wrote"
        ) from None
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
        for column in columns_of(one, result["dtype"], result["machine"]["device"]):
            measure = column.title.split(" (")[0]
            for peer in column.values:
                over = None if peer == OURS else column.over(peer)
                if over is not None:
                    found[column.kind, model, peer, measure] = over.median
    return found


def comparison(result: dict[str, Any], earlier: dict[str, Any]) -> str:
    """A row for each ratio that both have, and of each kind the one that differs most."""
    now, before = ratios(result), ratios(earlier)
    common = {key: now[key] / before[key] for key in now if key in before}
    if not common:
        return f"This run and that of {earlier['date']} have no ratio in common."
    lines = ["| ratio | earlier | this run | this run / earlier |", "|---|---|---|---|"]
    for key, over in common.items():
        cells = [_named(key), *(significant(value) for value in (before[key], now[key], over))]
        lines.append(f"| {' | '.join(cells)} |")
    apart = {key: max(over, 1 / over) - 1 for key, over in common.items()}
    most = []
    for kind in dict.fromkeys(key[0] for key in common):
        worst = max((key for key in apart if key[0] == kind), key=lambda key: apart[key])
        differ = "" if most else "differ "
        most.append(f"{kind} {differ}by at most {100 * apart[worst]:.1f} % ({_named(worst)})")
    lines += ["", f"Against the run of {earlier['date']} {', '.join(most)}."]
    return "\n".join(lines)


def _named(key: Key) -> str:
    _, model, peer, measure = key
    return f"{model}: {OURS} / {peer}, {measure}"
