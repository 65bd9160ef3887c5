"""One step, as a process: `python -m bench.gpu_steps NAME SECONDS [--dry]` tells lines of JSON."""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.gpu_steps.plan import chosen
from bench.gpu_steps.runner import IN_PART, SCRATCH
from bench.gpu_steps.telling import Telling


def main() -> int:
    """Runs the step that the command line names; returns the exit status."""
    name, limit, *flags = sys.argv[1:]
    (step,) = chosen([name])
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print goes to the log

    def tell(key: str, value: Any) -> None:
        answers.write(json.dumps([key, value]) + "\n")
        answers.flush()

    scratch, end = Path(os.environ[SCRATCH]), time.monotonic() + float(limit)
    telling = Telling(tell, dry="--dry" in flags, scratch=scratch, end=end)
    run: Callable[..., None] = importlib.import_module(f"bench.gpu_steps.{step.module}").run
    run(telling, **dict(step.given))
    return IN_PART if telling.failed else 0


if __name__ == "__main__":
    sys.exit(main())
