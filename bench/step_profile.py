"""Where the time of a decoding step, or of a prompt, goes on a CPU.

`python bench/step_profile.py CHECKPOINT` profiles the step, with `--prefill TIME` the reading of a
prompt. XLA's profiler says how long each instruction took, and the compiled program which part of
the model the instruction is of. Of products of small weights it does not: these are counted with
what uses them. Of a moment in which several instructions run, each is given its share.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import gzip
import json
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import llama_jax
from llama_jax.generation import driver
from llama_jax.generation.limits import initial_slots
from llama_jax.generation.placement import Placement

PARTS = (
    ("keys and values written", r"jit\(_write\)"),
    ("attention", r"jit\(_over_spans\)"),
    ("products of attention's weights", r"attention/jit\(linear\)"),
    ("products of the feed-forward's weights", r"feed_forward/jit\((linear|feed_forward)\)"),
    ("product of the output", r"transformer/jit\(linear(_transposed)?\)"),
    ("norms, rotations, swiglu, residual", r"transformer"),
    ("sampling, stops and the loop", r""),
)
"""Names for people, and what the first that matches says of an instruction's origin."""
HOLDING = {"while", "conditional", "call"}
"""Instructions whose time is that of others."""
DECODED_AFTER = 16
"""Tokens of the prompts before a step that is profiled."""
REPEATS = 5
"""Runs without the profiler, of which the median counts."""


@dataclasses.dataclass(frozen=True)
class Profile:
    """Milliseconds of a step, or of a prompt, on the average."""

    parts: dict[str, float]
    """In which instructions of each part of the model ran, in the order of `PARTS`."""
    without: float
    """That pass where no profiler looks on."""


def main() -> None:
    """Prints milliseconds for each part of the model, and what passes without the profiler."""
    parser = argparse.ArgumentParser(description="Where the time of a step, or a prompt, goes.")
    parser.add_argument("checkpoint", type=Path, help="a checkpoint's directory, of any format")
    parser.add_argument("--dtype", help="of the weights: float32 (on a CPU the default), bfloat16")
    parser.add_argument("--batch", type=int, default=1, help="rows computed together (1)")
    parser.add_argument("--steps", type=int, help="how many are averaged (64; of prompts 8)")
    parser.add_argument("--prefill", type=int, metavar="TIME", help="prompts of so many tokens")
    options = parser.parse_args()
    for name in ("batch", "steps", "prefill"):
        if (given := getattr(options, name)) is not None and given < 1:
            parser.error(f"--{name} {given} must be at least 1")
    try:
        params = llama_jax.load(options.checkpoint, dtype=options.dtype)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    if Placement.of(params).platform != "cpu":
        parser.error("on a GPU, see it with NVIDIA's Nsight Systems; this reads a CPU's trace")
    if options.prefill:
        if options.prefill >= (limit := params.config.max_seq_len):
            parser.error(f"--prefill {options.prefill} must be below max_seq_len={limit}")
        found = prefilled(params, options.batch, options.prefill, options.steps or 8)
    else:
        steps = options.steps or 64
        most = initial_slots(DECODED_AFTER, params.config.max_seq_len) - DECODED_AFTER
        if steps > most:
            parser.error(f"--steps {steps} must be at most {most}, before the cache doubles")
        found = decoded(params, options.batch, steps)
    lines = {**found.parts, "together": sum(found.parts.values())}
    for name, milliseconds in {**lines, "without the profiler": found.without}.items():
        print(f"{name:40} {milliseconds:8.3f} ms")


def decoded(params: llama_jax.Params, batch: int, steps: int) -> Profile:
    """Of one step of the loop that decodes, over a cache of few slots."""
    traced = _traced("decode")
    generate = _generate(params, batch, DECODED_AFTER)
    generate(steps + 1)
    events = _events(lambda: generate(steps + 1), "jit_decode")
    took = [generate(steps + 1) - generate(1) for _ in range(REPEATS)]
    return _profile(events, traced.program, steps, statistics.median(took) / steps)


def prefilled(params: llama_jax.Params, batch: int, length: int, count: int) -> Profile:
    """Of reading prompts of so many tokens, and choosing the first new token of each."""
    traced = _traced("prefill")
    generate = _generate(params, batch, length)
    generate(1)
    events = _events(lambda: [generate(1) for _ in range(count)], "jit_prefill")
    took = [generate(1) for _ in range(count)]
    return _profile(events, traced.program, count, statistics.median(took))


def _generate(params: llama_jax.Params, batch: int, length: int) -> Callable[[int], float]:
    """A function that decodes so many tokens after random prompts, and says how long it took."""
    ids = np.random.default_rng(0).integers(5, params.config.vocab_size, (batch, length)).tolist()

    def generate(new: int) -> float:
        start = time.perf_counter()
        llama_jax.generate(params, ids, max_new_tokens=new, temperature=0, stop_ids=())
        return time.perf_counter() - start

    return generate


def _events(run: Callable[[], Any], program: str) -> list[dict[str, Any]]:
    """What the profiler saw of a program's instructions, while `run` ran."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            run()
        (path,) = Path(folder).rglob("*.trace.json.gz")
        events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    return [event for event in events if event.get("args", {}).get("hlo_module") == program]


def _profile(
    events: list[dict[str, Any]], program: str, count: int, seconds_without: float
) -> Profile:
    part_of = parts(program)
    known = [event for event in events if event["name"] in part_of]
    spans = [(e["ts"], e["ts"] + e["dur"], part_of[e["name"]]) for e in known]
    took = shares(spans)
    shown = {part: took.get(part, 0.0) / 1e3 / count for part, _ in PARTS}
    return Profile(shown, 1e3 * seconds_without)


def shares(spans: Sequence[tuple[float, float, str]]) -> dict[str, float]:
    """How long each name ran, of spans that begin, end and have a name.

    Of a time in which several run, each has an equal share: they share the cores too.
    """
    took: dict[str, float] = collections.defaultdict(float)
    edges = [(start, 1, name) for start, _, name in spans]
    edges += [(end, -1, name) for _, end, name in spans]
    running: collections.Counter[str] = collections.Counter()
    before = 0.0
    for edge, step, name in sorted(edges):
        for other, count in running.items():
            took[other] += (edge - before) * count / running.total() if count else 0.0
        running[name] += step
        before = edge
    return dict(took)


def _traced(name: str) -> _Traced:
    traced = _Traced(getattr(driver, name))
    setattr(driver, name, traced)
    return traced


class _Traced:
    """A jitted function, and the text of the program that it was compiled to."""

    def __init__(self, jitted: Any) -> None:
        self.jitted, self.program = jitted, ""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self.program:
            self.program = self.jitted.lower(*args, **kwargs).compile().as_text()
        return self.jitted(*args, **kwargs)


def parts(program: str) -> dict[str, str]:
    """Which part of the model each instruction of a compiled program is of.

    Instructions that XLA made itself have no origin: theirs is that of the first that uses them.
    """
    origin: dict[str, str] = {}
    users: dict[str, str] = {}
    for line in program.splitlines():
        found = re.match(r"\s*(?:ROOT )?%(\S+) = .*? ([a-z][a-z-]*)\((.*)", line)
        if not found or found[2] in HOLDING:
            continue
        name, _, rest = found.groups()
        for operand in re.findall(r"%([\w.\-]+)", rest.split(")")[0]):
            users.setdefault(operand, name)
        if said := re.search(r'op_name="([^"]*)"', rest):
            origin[name] = said[1]
        else:
            origin.setdefault(name, "")

    def traced_back(name: str) -> str:
        seen = set()
        while not origin[name] and users.get(name) in origin and name not in seen:
            seen.add(name)
            name = users[name]
        return origin[name]

    return {
        name: next(part for part, of in PARTS if re.search(of, traced_back(name)))
        for name in origin
    }


if __name__ == "__main__":
    main()
