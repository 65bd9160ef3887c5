"""The prepared ten minutes on a GPU: what is right, how fast, and where the time goes.

`PYTHONPATH=. python3 bench/gpu.py --out DIR --minutes 8`, from a clone, with nothing of ours
installed. Steps run one after the other, the worthiest first, each a process with a limit of its
own. DIR/gpu.json has what each told as soon as it told it, DIR/gpu.md the table, DIR/gpu.log what
the steps wrote. `--dry` runs every step at toy size on a CPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import importlib.util
import json
import os
import shlex
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

from bench.gpu_steps.plan import STEPS, Step, chosen
from bench.gpu_steps.report import table
from bench.gpu_steps.runner import ROOT, SCRATCH, keep_whole, run_steps
from bench.record import source

STAND_INS = ROOT / "bench" / "gpu_steps" / "stand_ins"
"""Packages that the machine may lack, and that only annotate."""
DRY_LIMITS = 4
"""How much longer a dry step may take than the card's: a few cores that others use run it."""


def main(arguments: list[str] | None = None) -> None:
    """Runs the steps that there is time for, and prints the table."""
    options = _parser().parse_args(arguments)
    try:
        steps = chosen(options.only)
        if options.dry:
            steps = [dataclasses.replace(step, limit=DRY_LIMITS * step.limit) for step in steps]
        options.out.mkdir(parents=True, exist_ok=True)
        options.scratch.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        _parser().error(str(error))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a step ends with us
    given = sys.argv[1:] if arguments is None else arguments
    start = time.monotonic()
    record: dict[str, Any] = {
        "command": shlex.join(["bench/gpu.py", *given]),
        "began": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "minutes": options.minutes,
        "dry": options.dry,
        "source": source(),
        "seconds": 0.0,
    }

    def keep(record: dict[str, Any]) -> None:
        record["seconds"] = round(time.monotonic() - start, 1)
        keep_whole(options.out / "gpu.json", json.dumps(record, indent=1))
        keep_whole(options.out / "gpu.md", shown(record))

    def command(step: Step, limit: float) -> list[str]:
        flags = ["--dry"] if options.dry else []
        return [sys.executable, "-m", "bench.gpu_steps", step.name, f"{limit:.1f}", *flags]

    log = options.out / "gpu.log"
    log.write_text("")
    run_steps(
        steps,
        record,
        seconds=60 * options.minutes,
        log=log,
        keep=keep,
        command=command,
        env=environment(options.scratch, dry=options.dry),
    )
    print(shown(record), end="")


def shown(record: dict[str, Any]) -> str:
    """The table, or why there is none: no mistake of it may end the steps."""
    try:
        return table(record)
    except Exception:
        return f"the table failed, and gpu.json has all:\n{traceback.format_exc()}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="What ten minutes on a GPU tell.")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--minutes", type=float, default=8.0, help="for all steps together (8)")
    names = ", ".join(step.name for step in STEPS)
    parser.add_argument("--only", nargs="+", metavar="STEP", help=f"these alone, of {names}")
    parser.add_argument("--dry", action="store_true", help="every step at toy size, on a CPU")
    parser.add_argument(
        "--scratch",
        type=Path,
        default=Path(tempfile.gettempdir()) / f"llama_jax_gpu_{os.getuid()}",
        help="folder for programs, which a second run finds, and for traces",
    )
    return parser


def environment(scratch: Path, *, dry: bool) -> dict[str, str]:
    """What every step is started with: our clone, the device, and where programs are kept."""
    absent = [] if importlib.util.find_spec("jaxtyping") else [str(STAND_INS)]
    found = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), *absent]),
        "PYTHONUNBUFFERED": "1",
        "JAX_PLATFORMS": "cpu" if dry else "cuda,cpu",  # a CPU too, to compare tokens with
        "JAX_COMPILATION_CACHE_DIR": str(scratch.resolve() / "programs"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        # A step takes what it needs, so that its memory is its own, and leaves nothing behind.
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "HF_HUB_OFFLINE": "1",
        SCRATCH: str(scratch.resolve()),
    }
    for name in ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"):
        found.pop(name, None)
    return found


if __name__ == "__main__":
    main()
