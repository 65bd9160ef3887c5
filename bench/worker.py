"""A process that holds one contestant and does what it is asked, a line of JSON at a time.

`python -m bench.worker NAME` reads requests from its standard input and answers on its
standard output. With a prompt as `first_token` it says its first token and ends.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from bench.contestant import Contestant, Loading, Run
from bench.machine import Machine
from bench.memory import peak_resident

MACHINE = "machine"
TIMES = 3
"""How often a decoding is measured at most, until its time is positive."""


def main() -> None:
    """Answers requests until there are none."""
    name, given = sys.argv[1], json.loads(sys.argv[2])
    answers = own_output()
    subject: Any
    subject, ready = _machine(given) if name == MACHINE else _contestant(given)
    if "first_token" in given:
        ready["tokens"] = subject.decode([given["first_token"]], 1).tokens
    say(answers, ready)
    for line in sys.stdin if "first_token" not in given else ():
        try:
            answer = answered(subject, json.loads(line))
        except Exception as error:  # the parent says whose it was, and stops
            answer = {"error": f"{type(error).__name__}: {error}"}
        say(answers, answer)


def _machine(given: dict[str, Any]) -> tuple[Machine, dict[str, Any]]:
    return Machine(given["device"], given["dtype"]), {}


def _contestant(given: dict[str, Any]) -> tuple[Contestant, dict[str, Any]]:
    """The contestant, loaded, and what that took."""
    module = importlib.import_module(f"bench.{given['module']}")
    imported, start = peak_resident(), time.perf_counter()
    subject = module.load(loading_of(given))
    seconds, loaded = time.perf_counter() - start, subject.peak_memory()
    sizes = {"imported_bytes": imported, "loaded_bytes": loaded}
    return subject, {"seconds": seconds, **sizes, "build": getattr(subject, "build", None)}


def answered(subject: Any, request: dict[str, Any]) -> dict[str, Any]:
    """What one request yields: see `Contestant` and `Machine` for what there is."""
    match request:
        case {"do": "bandwidth"}:
            return {"rate": subject.bandwidth()}
        case {"do": "matrix", "dtype": dtype}:
            return {"rate": subject.matrix(dtype)}
        case {"do": "peak_memory"}:
            return {"bytes": subject.peak_memory()}
        case {"do": "store", "rows": rows}:
            if hasattr(subject, "store"):
                subject.store(rows)
            return {}
    return _measured(subject, request)


def _measured(subject: Any, request: dict[str, Any]) -> dict[str, Any]:
    match request:
        case {"do": "decode", "prompts": prompts, "new": new}:
            run, again = _decoded(subject, prompts, new)
            if not run.followed:
                raise ValueError(
                    f"all {new} tokens came at once, so there is no rate; ask for more of them, or "
                    "leave this contestant out of so small a model"
                )
            if run.seconds <= 0:
                raise ValueError(
                    f"the first token took longer alone than all {new}, so there is no rate; ask "
                    "for more of them, or wait until the machine is less busy"
                )
            rate = run.followed / run.seconds
            return {"tokens": run.tokens, "rate": rate, "again": again}
        case {"do": "pace", "prompt": prompt, "new": new}:
            return {"seconds": subject.pace(prompt, new)}
        case {"do": "prefill", "prompt": prompt}:
            return {"rate": len(prompt) / subject.prefill(prompt)}
        case {"do": "logits", "prompt": prompt}:
            return {"logits": [float(x) for x in subject.logits(prompt)]}
    raise ValueError(f"nobody knows how to do {request.get('do')!r}")


def _decoded(subject: Contestant, prompts: list[list[int]], new: int) -> tuple[Run, int]:
    """A decoding, and how often it was repeated: a difference of two times may be negative."""
    run, again = subject.decode(prompts, new), 0
    while run.seconds <= 0 and run.followed and again < TIMES - 1:
        run, again = subject.decode(prompts, new), again + 1
    return run, again


def loading_of(given: dict[str, Any]) -> Loading:
    """A contestant's part of what the parent wrote on the command line."""
    fields = {name: given[name] for name in ("dtype", "device", "threads", "binary")}
    contexts = {int(rows): positions for rows, positions in given["contexts"].items()}
    return Loading(path=Path(given["path"]), contexts=contexts, **fields)


def own_output() -> TextIO:
    """Standard output for the answers alone: what libraries print goes to standard error."""
    own = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return own


def say(answers: TextIO, answer: dict[str, Any]) -> None:
    """Gives the parent an answer, a line."""
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
