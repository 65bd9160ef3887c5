"""Results as Markdown, and into the document that shows them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench import card
from bench.columns import Column, columns_of
from bench.entrants import OURS
from bench.record import shown
from bench.shapes import ITEMSIZE
from bench.spread import Spread, significant, spread_of
from bench.worker import MACHINE
from llama_jax.checkpoint.published import parameter_count
from llama_jax.config import Config


def markdown(result: dict[str, Any]) -> str:
    """The whole of one run: the machine, then a table a model."""
    parts = [_heading(result)]
    kind = result["dtype"], result["machine"]["device"]
    parts += [model_table(name, one, *kind) for name, one in result["models"].items()]
    if result["absent"]:
        parts.append("\n".join(f"Not here: {line}." for line in result["absent"]))
    return "\n\n".join(parts)


def _heading(result: dict[str, Any]) -> str:
    machine = result["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    memory = machine["memory_bytes"] / 2**30
    loads = " and ".join(f"{result[moment][0]:.1f}" for moment in ("load", "load_at_end"))
    device = card.shown(machine["gpu"]) if machine.get("gpu") else machine["device"]
    unfinished = f"**Unfinished:** {result['unfinished']}\n" if "unfinished" in result else ""
    return unfinished + (
        f"{result['date']}, on {machine['processor']}, {machine['cores']} cores used, "
        f"{memory:.0f} GiB, {device}; Python {machine['python']}, {versions}.\n"
        f"`{result['command'].strip()}`, {result['seconds'] / 60:.1f} minutes, "
        f"llama_jax {shown(result['source'])}; load average {loads} at the start and the end."
    )


def model_table(name: str, one: dict[str, Any], dtype: str, device: str) -> str:
    """A row for each contestant, a row for each peer's ratio, and what the machine did."""
    columns = columns_of(one, dtype, device)
    contestants = [contestant for contestant in one["rates"] if contestant != MACHINE]
    lines = [["", *(column.title for column in columns)]]
    for contestant in contestants:
        lines.append([contestant, *(column.cells.get(contestant, "") for column in columns)])
    for peer in contestants:
        if peer != OURS:
            lines.append([f"{OURS} / {peer}", *(_ratio(column, peer) for column in columns)])
    rows = ["| " + " | ".join(line) + " |" for line in lines]
    rows.insert(1, "|---" * len(lines[0]) + "|")
    title = _title(name, one["config"], dtype)
    return "\n\n".join([title, "\n".join(rows), _machine(one["rates"][MACHINE])])


def _title(name: str, config: dict[str, Any], dtype: str) -> str:
    count = parameter_count(Config.from_json(config))
    nbytes = count * ITEMSIZE[dtype]
    return f"**{name}** ({count / 1e6:,.1f}M parameters, {dtype}, {nbytes / 1e9:.2f} GB)"


def _ratio(column: Column, peer: str) -> str:
    found = column.over(peer)
    return found.text() if found else ""


def _machine(rates: dict[str, list[float]]) -> str:
    """What the machine did in the same rounds."""
    read = [rate for name, some in rates.items() if name.startswith("bandwidth") for rate in some]
    parts = [f"reads {_giga(spread_of(read))} GB/s"]
    for name, some in rates.items():
        if name.startswith("matrix"):
            rate = f"{_giga(spread_of(some))} GFLOP/s"
            parts.append(f"XLA multiplies square matrices of {name.split()[1]} on it at {rate}")
    return f"In the same rounds the machine {', '.join(parts)}."


def _giga(rate: Spread) -> str:
    return Spread(*(value / 1e9 for value in (rate.median, rate.low, rate.high))).text()


def slots_table(result: dict[str, Any]) -> str:
    """Decode's cost at each number of used slots, the line through them, and what lies off it."""
    title = f"{_title(result['model'], result['config'], result['dtype'])}, `llama_jax.stream`"
    full, past = result["milliseconds"], result["just_past"]
    sizes = {slots: (slots, ms) for slots, ms in full.items()} | past
    start, slope = result["line"]
    lines = []
    for slots, (of_cache, ms) in sizes.items():
        found = spread_of(ms)
        off = round(100 * (found.median / (start + slope * int(slots)) - 1))
        lines.append((f"{int(slots):,}", f"{int(of_cache):,}", found.text(), f"{off:+} %"))
    rows = ["| " + " | ".join(line) + " |" for line in lines]
    head = "| slots in use | slots of the cache | ms a token, batch 1 | off the line |"
    fit = f"{significant(start)} ms, and {significant(slope * 1000)} ms for every 1,000 slots"
    text = (
        f"The line through the {len(full)} full caches: {fit}. Between them the cost is a "
        "staircase: a cache that is full doubles, and a token costs what its cache's slots cost, "
        "just past a doubling as much as right before the next."
    )
    return "\n\n".join([_heading(result), title, "\n".join([head, "|---" * 4 + "|", *rows]), text])


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
