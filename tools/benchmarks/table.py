"""Results as Markdown, and into the document that shows them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.entrants import OURS
from benchmarks.shapes import parameters, prefill_flops, read_per_step
from benchmarks.spread import Spread, paired, significant, spread_of
from benchmarks.worker import MACHINE
from llama_jax.config import Config

ITEMSIZE = {"float32": 4, "bfloat16": 2}
_DECODES = {"decode 1": 1, "decode 8": 8}


def markdown(result: dict[str, Any]) -> str:
    """The whole of one run: the machine, then a table a model."""
    parts = [_heading(result)]
    parts += [model_table(name, one, result["dtype"]) for name, one in result["models"].items()]
    if result["absent"]:
        parts.append("\n".join(f"Not here: {line}." for line in result["absent"]))
    return "\n\n".join(parts)


def _heading(result: dict[str, Any]) -> str:
    machine = result["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    memory = machine["memory_bytes"] / 2**30
    return (
        f"{result['date']}, on {machine['processor']}, {machine['cores']} cores used, "
        f"{memory:.0f} GiB, {machine['device']}; Python {machine['python']}, {versions}.\n"
        f"`{result['command'].strip()}`, {result['seconds'] / 60:.1f} minutes."
    )


def model_table(name: str, one: dict[str, Any], dtype: str) -> str:
    """A row for each contestant, a row for each peer's ratio, and what the machine could do."""
    config, rates = Config.from_json(one["config"]), one["rates"]
    nbytes = parameters(config) * ITEMSIZE[dtype]
    size = f"{parameters(config) / 1e6:,.0f}M parameters, {dtype}, {nbytes / 1e9:.2f} GB"
    columns = _columns(one, config, ITEMSIZE[dtype])
    lines = [["", *columns]]
    contestants = [contestant for contestant in rates if contestant != MACHINE]
    for contestant in contestants:
        lines.append([contestant, *(cell(contestant) for cell, _ in columns.values())])
    for peer in contestants:
        if peer != OURS:
            shown = [_ratio(values(OURS), values(peer)) for _, values in columns.values()]
            lines.append([f"{OURS} / {peer}", *shown])
    rows = ["| " + " | ".join(line) + " |" for line in lines]
    rows.insert(1, "|---" * len(lines[0]) + "|")
    return f"**{name}** ({size})\n\n" + "\n".join(rows) + "\n\n" + _machine(rates[MACHINE])


Column = tuple[Callable[[str], str], Callable[[str], list[float]]]
"""What a cell shows of a contestant, and the values that ratios are taken of."""


def _columns(one: dict[str, Any], config: Config, itemsize: int) -> dict[str, Column]:
    rates, columns = one["rates"], {}
    for measure, batch in _DECODES.items():
        limit = _over([batch / (read_per_step(config) * itemsize)], rates[MACHINE], batch)
        title = f"decode, batch {batch} (tokens/s; of the bandwidth limit)"
        columns[title] = _rate_column(rates, measure, limit)
    dtype = {4: "float32", 2: "bfloat16"}[itemsize]
    flops = prefill_flops(config, one["prefill"]) / one["prefill"]
    matrix = [rate / flops for rate in rates[MACHINE][f"matrix {dtype}"]]
    title = f"prefill {one['prefill']} (tokens/s; of the matrix limit)"
    columns[title] = _rate_column(rates, "prefill", matrix)
    for kind in ("cold", "cached"):
        if one["first_tokens"]:
            columns[f"first token, {kind} (s)"] = _plain_column(one["first_tokens"], kind)
    memory = one["memory"]
    for kind, title in (("loaded_bytes", "peak loading"), ("peak_bytes", "peak in all")):
        columns[f"{title} (times the weights)"] = _memory_column(
            memory, kind, parameters(config) * itemsize
        )
    return columns


def _over(scale: list[float], machine: dict[str, list[float]], batch: int) -> list[float]:
    """Tokens per second if nothing but reading the weights took time, round by round."""
    return [scale[0] * rate for rate in machine[f"bandwidth {batch}"]]


def _rate_column(rates: dict[str, Any], measure: str, limit: list[float]) -> Column:
    def values(name: str) -> list[float]:
        return rates[name].get(measure, [])

    def cell(name: str) -> str:
        found = values(name)
        if not found:
            return ""
        return f"{spread_of(found).text()}; {paired(found, limit).median:.2f}"

    return cell, values


def _plain_column(times: dict[str, Any], kind: str) -> Column:
    def values(name: str) -> list[float]:
        # A peer compiles nothing: its one time stands against ours of either kind.
        return times[name].get(kind) or times[name]["cold"]

    def cell(name: str) -> str:
        return spread_of(times[name][kind]).text() if kind in times[name] else ""

    return cell, values


def _memory_column(memory: dict[str, Any], kind: str, nbytes: int) -> Column:
    def values(name: str) -> list[float]:
        return [memory[name][kind] / nbytes]

    return lambda name: f"{values(name)[0]:.2f}", values


def _ratio(ours: list[float], theirs: list[float]) -> str:
    return paired(ours, theirs).text() if theirs else ""


def _machine(rates: dict[str, list[float]]) -> str:
    """What the machine did in the same rounds."""
    read = [rate for name, some in rates.items() if name.startswith("bandwidth") for rate in some]
    parts = [f"reads {_giga(spread_of(read))} GB/s"]
    for name, some in rates.items():
        if name.startswith("matrix"):
            parts.append(f"multiplies {name.split()[1]} at {_giga(spread_of(some))} GFLOP/s")
    return f"In the same rounds the machine {', '.join(parts)}."


def _giga(rate: Spread) -> str:
    return Spread(*(value / 1e9 for value in (rate.median, rate.low, rate.high))).text()


def slots_table(result: dict[str, Any]) -> str:
    """Decode's cost at each number of used slots, and the line through them."""
    costs = {int(slots): spread_of(ms) for slots, ms in result["milliseconds"].items()}
    rows = ["| slots in use | ms a token |", "|---|---|"]
    rows += [f"| {slots:,} | {cost.text()} |" for slots, cost in costs.items()]
    start, slope = result["line"]
    fit = f"{significant(start)} ms, and {significant(slope * 1000)} ms for every 1,000 slots"
    worst = f"{100 * result['off_line']:.0f} %"
    text = f"The line through them: {fit}; the point farthest off it is {worst} away."
    return "\n\n".join([_heading(result), "\n".join(rows), text])


def replaced(document: str, name: str, text: str) -> str:
    """The document with `text` between the two markers of `name`."""
    begin, end = f"<!-- bench {name} -->", f"<!-- end of bench {name} -->"
    if document.count(begin) != 1 or document.count(end) != 1:
        raise ValueError(f"the document must hold {begin} and {end} once each; add both lines")
    before, rest = document.split(begin)
    return f"{before}{begin}\n{text}\n{end}{rest.split(end)[1]}"


def write_docs(path: Path, name: str, text: str) -> None:
    """`replaced`, in a file."""
    path.write_text(replaced(path.read_text(), name, text))
