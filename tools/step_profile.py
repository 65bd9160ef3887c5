"""Where the time of one decoding step goes on a CPU: `python tools/step_profile.py CHECKPOINT`.

XLA's profiler says how long each instruction of the compiled loop took, and the program itself
which part of the model the instruction is of. Of products of small weights it does not: these are
counted with what uses them.
"""

from __future__ import annotations

import argparse
import collections
import gzip
import json
import re
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

import llama_jax
from llama_jax import rounds

PARTS = (
    ("keys and values written", r"jit\(_write\)"),
    ("attention", r"jit\(_attention\)"),
    ("products of attention's weights", r"attention/jit\(_product\)"),
    ("products of the feed-forward's weights", r"feed_forward/jit\(_product\)"),
    ("product of the output", r"Transformer/jit\(_product\)"),
    ("norms, rotations, swiglu, residual", r"Transformer"),
    ("sampling, stops and the loop", r""),
)
"""Names for people, and what the first that matches says of an instruction's origin."""
LOOP = "jit_advance"
HOLDING = {"while", "conditional", "call"}
"""Instructions whose time is that of others."""


def main() -> None:
    """Prints milliseconds a step for each part of the model."""
    parser = argparse.ArgumentParser(description="Where the time of one decoding step goes.")
    parser.add_argument("checkpoint", type=Path, help="a checkpoint's directory, of any format")
    parser.add_argument("--dtype", help="of the weights: float32 (on a CPU the default), bfloat16")
    parser.add_argument("--batch", type=int, default=1, help="rows decoded together (1)")
    parser.add_argument("--steps", type=int, default=64, help="how many are averaged (64)")
    options = parser.parse_args()
    for name in ("batch", "steps"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} {getattr(options, name)} must be at least 1")
    try:
        params = llama_jax.load(options.checkpoint, dtype=options.dtype)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    if rounds.platform_of(params) != "cpu":
        parser.error("on a GPU, see it with NVIDIA's Nsight Systems; this reads a CPU's trace")
    part_of, took = decoded(params, options.batch, options.steps)
    shown: collections.Counter[str] = collections.Counter()
    for name, seconds in took.items():
        shown[part_of[name]] += seconds
    for part, _ in PARTS:
        print(f"{part:40} {1e3 * shown[part] / options.steps:8.3f} ms")
    print(f"{'together':40} {1e3 * sum(shown.values()) / options.steps:8.3f} ms")


def decoded(
    params: llama_jax.Params, batch: int, steps: int
) -> tuple[dict[str, str], dict[str, float]]:
    """The part that each instruction of the loop is of, and the seconds each took in all."""
    ids = np.random.default_rng(0).integers(5, params.config.vocab_size, (batch, 16)).tolist()
    traced = _Traced(rounds._advance)
    rounds._advance = traced  # type: ignore[assignment]

    def decode() -> Any:
        return llama_jax.generate(params, ids, max_new_tokens=steps + 1, temperature=0, stop_ids=())

    decode()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            decode()
        (path,) = Path(folder).rglob("*.trace.json.gz")
        events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    part_of = parts(traced.program)
    took: collections.Counter[str] = collections.Counter()
    for event in events:
        if event.get("args", {}).get("hlo_module") == LOOP and event["name"] in part_of:
            took[event["name"]] += event["dur"] / 1e6
    return part_of, dict(took)


class _Traced:
    """`advance`, and the text of the program that it was compiled to."""

    def __init__(self, advance: Any) -> None:
        self.advance, self.program = advance, ""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self.program:
            self.program = self.advance.lower(*args, **kwargs).compile().as_text()
        return self.advance(*args, **kwargs)


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
