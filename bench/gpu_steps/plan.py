"""Which steps there are, in the order of their worth, and how long each may take.

The parent imports this, and so it imports neither JAX nor torch.
"""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Step:
    """One process: `python -m bench.gpu_steps NAME`."""

    name: str
    module: str
    """Of `bench.gpu_steps`: the one whose `run` does it."""
    limit: float
    """Seconds after which the process is ended. What it told until then stays."""
    what: str
    given: tuple[tuple[str, Any], ...] = ()
    """Further arguments of `run`."""


B1, B8 = (("model", "llama-3.2-1b"),), (("model", "llama-3.1-8b"),)
KINDS = (*B8, ("kinds", ("int8_channel", "int4", "fp8")))
STEPS = (
    Step("card", "card", 30, "the card, its copy bandwidth, its matrix rate"),
    Step("attention", "exact", 50, "attention's kernels against float64, and what is chosen"),
    Step("decode-8b", "decode", 90, "decoding 8B: tokens/s, bandwidth, where time goes", B8),
    Step("golden", "golden", 35, "Meta's and Hugging Face's logits and greedy tokens"),
    Step("prefill-8b", "prefill", 55, "reading prompts with 8B: part of the matrix rate", B8),
    Step("train-1b", "training", 65, "training 1B: tokens/s, part of the matrix rate, memory", B1),
    Step("torch-8b", "torch_peer", 75, "transformers on the same card, 8B", B8),
    Step("draws", "draws", 30, "draws equal a CPU's; a row in bfloat16 alone and in a batch"),
    Step("first-token", "first", 50, "from process start to the first token, cold and cached"),
    Step("quantized-8b", "decode", 120, "decoding 8B of 8 and 4 bits a weight", KINDS),
    Step("engine-8b", "engine", 150, "many requests at once: tokens/s, first tokens", B8),
    Step("decode-1b", "decode", 80, "decoding 1B: tokens/s, bandwidth, where time goes", B1),
    Step("prefill-1b", "prefill", 60, "reading prompts with 1B: part of the matrix rate", B1),
    Step("torch-1b", "torch_peer", 80, "transformers on the same card, 1B", B1),
)
"""Every kind of result but the engine's comes first, in eight minutes together: so a run of eight
minutes that finds no compiled programs begins each of them. A step is listed once the feature that
it measures exists."""


def chosen(only: list[str] | None) -> list[Step]:
    """The steps of these names, in the order of their worth; ValueError where one is unknown."""
    known = [step.name for step in STEPS]
    if unknown := [name for name in only or () if name not in known]:
        raise ValueError(f"there is no step {unknown[0]!r}; choose of {', '.join(known)}")
    return [step for step in STEPS if not only or step.name in only]
