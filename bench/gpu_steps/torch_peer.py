"""transformers on the same card: the same shapes, the same lengths, random weights and prompts.

First as it comes, then with a static cache, for which `generate` compiles its step: the faster one
counts. No JAX runs in this process, which has the card to itself.
"""

from __future__ import annotations

import gc
import time
from typing import Any

import torch
import transformers

from bench.gpu_steps.sizes import sizes_of
from bench.gpu_steps.telling import Telling
from bench.gpu_steps.timing import spread, timed

CASES, TOY_CASES = ((1, 512), (8, 8192), (8, 512), (1, 8192)), ((1, 40), (2, 100))
LENGTHS, TOY_LENGTHS = (512, 2048, 16384), (40,)
STEPS, TOY_STEPS = 32, 8
ENOUGH = 30.0
"""Seconds that must be left for a case whose step is compiled."""


def run(telling: Telling, model: str) -> None:
    """Tells prompts first, then decoding, compiled too while there is time."""
    transformers.utils.logging.set_verbosity_error()
    device = "cuda" if torch.cuda.is_available() and not telling.dry else "cpu"
    telling.tell("versions", {"torch": torch.__version__, "transformers": transformers.__version__})
    if device == "cpu" and not telling.dry:
        raise RuntimeError("torch sees no GPU")
    if telling.dry:
        torch.set_num_threads(1)
    peer = _Peer(sizes_of(model, dry=telling.dry), device)
    for length in TOY_LENGTHS if telling.dry else LENGTHS:
        with telling.part(f"{length} tokens"):
            telling.tell(f"{length} tokens", peer.prefill(length))
    steps = TOY_STEPS if telling.dry else STEPS
    for (rows, used), cache in _asked(telling.dry):
        name = f"{rows} x {used}{' compiled' if cache else ''}"
        if cache and telling.left < ENOUGH:
            telling.tell("left out", name)
            continue
        with telling.part(name):
            telling.tell(name, peer.decode(rows, used, steps, cache))


def _asked(dry: bool) -> list[tuple[tuple[int, int], str | None]]:
    """Each case with its kind of cache: those that tell most first, one that is compiled too."""
    if dry:  # a CPU's step is compiled by a C++ compiler, in minutes
        return [(case, None) for case in TOY_CASES]
    as_it_comes, compiled = ([(case, cache) for case in CASES] for cache in (None, "static"))
    return [*as_it_comes[:2], *compiled[:1], *as_it_comes[2:], *compiled[1:]]


class _Peer:
    """A model of transformers with random weights, made where it stays."""

    def __init__(self, sizes: dict[str, Any], device: str) -> None:
        config = transformers.LlamaConfig(**sizes)
        self.device, self.vocab = device, config.vocab_size
        with torch.device(device):
            self.model = transformers.AutoModelForCausalLM.from_config(
                config, dtype=torch.bfloat16, attn_implementation="sdpa"
            )
        self.model.eval()
        self.model.generation_config.eos_token_id = None

    def prefill(self, length: int) -> dict[str, Any]:
        """The forward pass of one prompt, whose last token's logits are wanted."""
        ids = self._ids(1, length)

        def renew() -> None:
            nonlocal ids
            ids = self._ids(1, length)

        def read() -> None:
            with torch.inference_mode():
                self.model(ids, use_cache=True, logits_to_keep=1)
            _now(self.device)

        times = timed(read, repeats=5, warm=2, before=renew)
        return {"ms": {of: 1e3 * x for of, x in times.items()}, **self._memory()}

    def decode(self, rows: int, used: int, steps: int, cache: str | None) -> dict[str, Any]:
        """`generate`, from its first new token to its last: what came before does not count."""
        clocks = [self._generated(rows, used, steps, cache) for _ in range(4)]
        took = spread(clocks[1:])
        return {
            "step_ms": {of: 1e3 * seconds / steps for of, seconds in took.items()},
            "tokens/s": rows * steps / took["median"],
            **self._memory(),
        }

    def _generated(self, rows: int, used: int, steps: int, cache: str | None) -> float:
        ids, clock = self._ids(rows, used), _Clock(self.device)
        with torch.inference_mode():
            found = self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=steps + 1,
                pad_token_id=0,
                cache_implementation=cache,
                stopping_criteria=transformers.StoppingCriteriaList([clock]),
            )
        last = _now(self.device)
        if found.shape[1] != used + steps + 1:
            raise ValueError(f"{found.shape[1] - used} new tokens, not {steps + 1}")
        gc.collect()
        return last - clock.first

    def _ids(self, rows: int, length: int) -> torch.Tensor:
        return torch.randint(5, self.vocab, (rows, length), device=self.device)

    def _memory(self) -> dict[str, int]:
        if self.device != "cuda":
            return {}
        return {"peak": torch.cuda.max_memory_allocated()}


class _Clock(transformers.StoppingCriteria):
    """Asked after every token whether to stop: notes when the first one was there."""

    def __init__(self, device: str) -> None:
        self.device, self.first = device, 0.0

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        self.first = self.first or _now(self.device)
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def _now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
