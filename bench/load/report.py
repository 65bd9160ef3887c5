"""A run's numbers as a table: a column a server, and the ratio of the two."""

from __future__ import annotations

from typing import Any

from bench.load.measured import PERCENTILES
from bench.spread import paired, significant, spread_of

RATES = {"tokens_per_second": "output tokens/s", "requests_per_second": "requests/s"}
DURATIONS = {"ttft": "TTFT", "itl": "ITL", "pause": "between chunks", "tpot": "TPOT", "e2e": "E2E"}


def table(result: dict[str, Any]) -> str:
    """Rates are the median of the rounds (and quartiles); times are of all rounds together."""
    servers = result["servers"]
    lines = [["", *servers], ["---"] * (1 + len(servers))]
    if len(servers) == 2:
        lines[0].append(" / ".join(["first", "second"]))
        lines[1].append("---")
    rows = [(title, [name]) for name, title in RATES.items()]
    for name, title in DURATIONS.items():
        rows += [(f"{title} p{one} (ms)", [name, f"p{one}"]) for one in PERCENTILES]
    for title, path in rows:
        cells = [_shown(one, path) for one in servers.values()]
        ratio = [_ratio(list(servers.values()), path)] if len(servers) == 2 else []
        lines.append([title, *cells, *ratio])
    lines += _counts(servers)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + _failures(servers)


def _shown(server: dict[str, Any], path: list[str]) -> str:
    if len(path) == 1:
        return spread_of([one[path[0]] for one in server["rounds"]]).text()
    value = _at(server["all"], path)
    return "" if value is None else significant(1000 * value)


def _ratio(servers: list[dict[str, Any]], path: list[str]) -> str:
    """Round by round, the first server's over the second's."""
    pairs = zip(*(one["rounds"] for one in servers), strict=True)
    found = [tuple(_at(one, path) for one in pair) for pair in pairs]
    some = [(ours, theirs) for ours, theirs in found if ours is not None and theirs]
    return paired(*map(list, zip(*some, strict=True))).text() if some else ""


def _at(found: Any, path: list[str]) -> Any:
    for name in path:
        found = found[name]
    return found


def _counts(servers: dict[str, Any]) -> list[list[str]]:
    """Rows that have no ratio."""
    names = {
        "requests": "requests",
        "failures": "failed",
        "short": "shorter than asked",
        "prompt_tokens": "prompt tokens",
        "cached_tokens": "of them from its cache",
        "new_tokens": "new tokens",
    }
    rest = [""] if len(servers) == 2 else []
    found = [
        [title, *(f"{one['all'][name]:,}" for one in servers.values()), *rest]
        for name, title in names.items()
    ]
    found.append(["tokens counted", *(one["all"]["counted"] for one in servers.values()), *rest])
    used = [one.get("process") for one in servers.values()]
    if any(used):
        memory = [
            f"{one['before'] / 1e6:,.1f} → {one['after'] / 1e6:,.1f}" if one else "" for one in used
        ]
        found.append(["memory of its own (MB)", *memory, *rest])
        spent = [significant(1000 * one["per_token"]) if one else "" for one in used]
        found.append(["its processor time a new token (ms)", *spent, *rest])
    return found


def _failures(servers: dict[str, Any]) -> str:
    lines = [
        f"{name}: {count} times: {why}"
        for name, one in servers.items()
        for why, count in one["errors"].items()
    ]
    return "".join(f"\n\n{line}" for line in lines)
