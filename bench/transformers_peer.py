"""transformers, through `generate`."""

from __future__ import annotations

import time
from typing import Any

import torch
import transformers

from bench.contestant import Loading, Logits, Run
from bench.memory import peak_resident


def load(loading: Loading) -> Transformers:
    """The folder, with torch's scaled-dot-product attention."""
    return Transformers(loading)


class Transformers:
    """On CPU with its default, growing cache; on a GPU with a static one, which it compiles for."""

    def __init__(self, loading: Loading) -> None:
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        torch.set_num_threads(loading.threads)
        self.device = "cuda" if loading.device == "gpu" else "cpu"
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("its torch has no CUDA")
        self.model = transformers.AutoModelForCausalLM.from_pretrained(
            loading.path, dtype=getattr(torch, loading.dtype), attn_implementation="sdpa"
        ).to(self.device)
        self.model.eval()
        self.model.generation_config.eos_token_id = None

    def decode(self, prompts: list[list[int]], new: int) -> Run:
        clock = _Clock(self.device)
        found = self._generated(prompts, new, [clock])
        last = _now(self.device)
        tokens = found[:, len(prompts[0]) :].tolist()
        return Run(tokens, (new - 1) * len(prompts), last - clock.first)

    def prefill(self, prompt: list[int]) -> float:
        start = time.perf_counter()
        self._generated([prompt], 1, [])
        return _now(self.device) - start

    def logits(self, prompt: list[int]) -> Logits:
        with torch.inference_mode():
            ids = torch.tensor([prompt], device=self.device)
            return self.model(ids, logits_to_keep=1).logits[0, -1].float().cpu().numpy()

    def _generated(self, prompts: list[list[int]], new: int, criteria: list[Any]) -> Any:
        ids = torch.tensor(prompts, device=self.device)
        with torch.inference_mode():
            return self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=new,
                min_new_tokens=None,
                pad_token_id=0,
                cache_implementation="static" if self.device == "cuda" else None,
                stopping_criteria=transformers.StoppingCriteriaList(criteria),
            )

    def peak_memory(self) -> int:
        return torch.cuda.max_memory_allocated() if self.device == "cuda" else peak_resident()


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
