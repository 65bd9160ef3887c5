"""The options of `python -m bench`, and what is refused before anything is measured."""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import os
import tempfile
from pathlib import Path

from bench import against, card, table
from bench.entrants import CONTESTANTS, OURS
from bench.record import NOTES
from bench.shapes import ITEMSIZE, SHAPES

DOCUMENT, PLOT = NOTES / "benchmarks.md", NOTES / "decode_cost.svg"
PUBLISHED = ["S", "M"]
ELSEWHERE = "checkpoint", "shapes", "contestants", "llama2c"
MEASURING = "quick", "device", "dtype", "threads", "rounds", "output", "docs"
APART = [
    ("slots", (*ELSEWHERE, "against"), "decode's cost is measured on one shape, ours alone"),
    ("checkpoint", ("shapes",), "a checkpoint is measured in place of the shapes"),
    ("docs", ("checkpoint", "shapes"), f"the document shows {' and '.join(PUBLISHED)}"),
    ("docs", ("contestants",), "the document shows every contestant that is here"),
    ("compare", ("slots", *ELSEWHERE, *MEASURING), "nothing is measured"),
]
"""An option, those that it leaves without a meaning, and why."""


def parser() -> argparse.ArgumentParser:
    """Every option; one that is left out is None or False until `settle`."""
    about = "Measures this project and its peers in alternation, and prints a table."
    found = argparse.ArgumentParser(prog="bench", description=about)
    add = found.add_argument
    add("--quick", action="store_true", help="fewer rounds: under ten minutes on two cores")
    add("--shapes", help="random weights of these shapes: tiny, S, M, S-long (S,M)")
    add("--checkpoint", type=Path, help="measure this checkpoint, of any format, and no shape")
    add("--slots", action="store_true", help="decode's cost at 256 to 16,384 slots, ours alone")
    add("--device", choices=("cpu", "gpu"), help="what it runs on (cpu)")
    add("--dtype", choices=tuple(ITEMSIZE), help="float32 on CPU, bfloat16 on a GPU")
    add("--contestants", help=f"whom to measure, of {','.join(CONTESTANTS)} (all there are)")
    add("--llama2c", metavar="PATH", type=Path, help="llama2.c's compiled `run`")
    add("--threads", type=int, help="cores that each contestant gets (all)")
    add("--rounds", type=int, help="rounds of every model, in place of the usual number")
    work = Path(tempfile.gettempdir()) / "llama_jax_bench"
    add("--work", type=Path, default=work, help=f"where models and logs are kept ({work})")
    add("--output", type=Path, help="the JSON file (a new one in --work, named for the run)")
    add(
        "--docs",
        action="store_true",
        help="put the table into docs/notes/benchmarks.md, its numbers into docs/notes/bench",
    )
    add("--against", type=Path, metavar="JSON", help="show each ratio over an earlier run's")
    add("--compare", type=Path, metavar="JSON", help="this run, with --against; measures nothing")
    return found


def settle(options: argparse.Namespace) -> None:
    """Refuses what cannot be done, before anything is written or loaded; settles what is open."""
    for option, without, why in APART:
        for other in without:
            if getattr(options, option) and getattr(options, other) not in (None, False):
                raise ValueError(f"--{other} does not go with --{option}: {why}; leave one out")
    if options.compare and not options.against:
        raise ValueError("--compare is of two runs; name the earlier one with --against")
    options.device = options.device or "cpu"
    options.dtype = options.dtype or ("float32" if options.device == "cpu" else "bfloat16")
    _settle_contestants(options)
    _settle_models(options)
    _settle_cores(options)
    check_files(options)
    on_gpu = options.device == "gpu" and not options.compare
    options.gpu = card.described(options.threads) if on_gpu else None


def _settle_contestants(options: argparse.Namespace) -> None:
    options.contestants = _listed(options.contestants) or list(CONTESTANTS)
    if unknown := sorted(set(options.contestants) - set(CONTESTANTS)):
        raise ValueError(f"contestant {unknown[0]!r} is unknown; use {', '.join(CONTESTANTS)}")
    if OURS not in options.contestants:
        raise ValueError(f"every ratio is to {OURS}; add it to --contestants")
    if options.llama2c:
        if not (options.llama2c.is_file() and os.access(options.llama2c, os.X_OK)):
            raise ValueError(f"--llama2c {options.llama2c} is no program; pass the compiled `run`")
        options.llama2c = str(options.llama2c.resolve())  # a bare name is looked up elsewhere


def _settle_models(options: argparse.Namespace) -> None:
    """`names`: a checkpoint's is never a shape's, whose folder and rounds it would get."""
    if options.checkpoint and not options.checkpoint.is_dir():
        raise ValueError(f"{options.checkpoint} is no directory; pass a checkpoint's")
    options.names = _listed(options.shapes) or PUBLISHED
    if options.checkpoint:
        options.names = [f"checkpoint-{options.checkpoint.resolve().name}"]
    elif unknown := [name for name in options.names if name not in SHAPES]:
        raise ValueError(f"shape {unknown[0]!r} is unknown; use one of {', '.join(SHAPES)}")


def _listed(text: str | None) -> list[str]:
    """What stands between the commas, once each."""
    return list(dict.fromkeys(name.strip() for name in text.split(","))) if text else []


def _settle_cores(options: argparse.Namespace) -> None:
    if options.rounds is not None and options.rounds < 1:
        raise ValueError(f"rounds={options.rounds} must be at least 1")
    cores = sorted(os.sched_getaffinity(0))
    options.threads = len(cores) if options.threads is None else options.threads
    if not 1 <= options.threads <= len(cores):
        raise ValueError(f"threads={options.threads} must be from 1 to {len(cores)}, the cores")
    os.sched_setaffinity(0, cores[: options.threads])  # and so of every process started from here


def check_files(options: argparse.Namespace) -> None:
    """What a run reads and writes at its end must be there at its start."""
    options.name = f"{'slots-' if options.slots else ''}{options.device}-{options.dtype}"
    if options.output:
        _check_writable(options.output)
    else:
        options.output = options.work / f"{_file_name(options)}.json"
    if options.docs:
        table.replaced(DOCUMENT.read_text(), options.name, "")
    if options.slots and importlib.util.find_spec("matplotlib") is None:
        raise ValueError("--slots draws with matplotlib; pip install -e '.[bench]'")
    if options.against:
        if options.against.resolve() == options.output.resolve():
            raise ValueError(f"--output {options.output} would overwrite --against; pass another")
        earlier = against.read(options.against)
        if options.compare:
            later = against.read(options.compare)
            of = later["machine"]["device"], later["dtype"], list(later["models"])
        else:
            of = options.device, options.dtype, options.names
        against.check_alike(earlier, *of)


def _file_name(options: argparse.Namespace) -> str:
    """No two runs write the same file."""
    models = [] if options.slots else ["+".join(options.names)]
    effort = "quick" if options.quick else "full"
    return "-".join([options.name, effort, *models, f"{datetime.datetime.now():%Y%m%d-%H%M%S}"])


def _check_writable(path: Path) -> None:
    if not path.parent.is_dir():
        raise ValueError(f"--output {path}: there is no folder {path.parent}; make it first")
    if path.exists() and not path.is_file():
        raise ValueError(f"--output {path} is no regular file; pass the path of one")
    # It is written beside, and takes the place of the other when it is whole.
    if not all(os.access(one, os.W_OK) for one in (path.parent, path) if one.exists()):
        raise ValueError(f"--output {path} may not be written; pass another path")
