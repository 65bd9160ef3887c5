"""`python -m tests.fuzz --minutes N`: changed files of every format, until one breaks a promise."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from fuzz import coverage  # noqa: E402
from fuzz.formats import FORMATS, IN_PYTHON  # noqa: E402


def main() -> None:
    said = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    said.add_argument("--minutes", type=float, default=1.0)
    said.add_argument("--seed", type=int, default=0, help="the first change; each has its own")
    said.add_argument("--only", choices=FORMATS, action="append", help="a format; default all")
    said.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir()) / "fuzz-finds")
    said.add_argument("--coverage", choices=IN_PYTHON, help="a format, led by what it reaches")
    given = said.parse_args()
    if given.coverage:
        coverage.watch(given.coverage, 60 * given.minutes, given.keep)
    from fuzz.trying import fuzz

    for ends in (signal.SIGINT, signal.SIGTERM):  # in the background a shell ignores the first
        signal.signal(ends, signal.default_int_handler)
    report = fuzz(60 * given.minutes, given.seed, given.only or FORMATS, given.keep)
    print("\n".join(report.lines()))
    raise SystemExit(1 if report.finds else 0)


main()
