"""Training loops in torch: of a plain model, and of transformers' one."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from bench.training.work import Work

CLIP, DECAY, EPSILON, BETA1 = 1.0, 0.1, 1e-5, 0.9
"""The paper's, as `Optimizer` has them."""


class Training:
    """A model in training, by the loop that everybody writes; AdamW is torch's fused one."""

    def __init__(self, kind: str, work: Work, folder: str) -> None:
        self._work, self._rows = work, np.load(f"{folder}/rows.npy")
        self._rates, self._done = np.load(f"{folder}/rates.npy"), 0
        self._train = _ids(Path(folder) / "tokens/train.bin")
        self._val = _ids(Path(folder) / "tokens/val.bin")
        self._model = _plain(work, folder) if kind == "torch" else _transformers(folder)
        self._optimizer = _adamw(self._model, work)

    def train(self, steps: int) -> tuple[float, list[float]]:
        """Seconds of so many steps, and each one's loss."""
        begin, found = time.perf_counter(), []
        for _ in range(steps):
            tokens, targets = self._batch(self._train, self._rows[self._done])
            for group in self._optimizer.param_groups:
                group["lr"] = float(self._rates[self._done])
            logits = self._model(tokens)
            loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
            self._optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self._model.parameters(), CLIP)
            self._optimizer.step()
            found.append(loss.detach())
            self._done += 1
        losses = [float(loss) for loss in found]
        return time.perf_counter() - begin, losses

    @torch.no_grad()
    def validation(self) -> float:
        """The mean loss of all validation tokens."""
        length, batch = self._work.time, self._work.batch
        whole = (len(self._val) - 1) // length
        rows = np.split(np.arange(whole), range(batch, whole, batch))
        parts = [self._batch(self._val, some) for some in rows]
        last = torch.from_numpy(self._val[whole * length :])[None]
        parts += [(last[:, :-1], last[:, 1:])] if last.numel() > 1 else []
        total = count = 0.0
        for tokens, targets in parts:
            logits = self._model(tokens)
            total += float(
                F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
            )
            count += targets.numel()
        return total / count

    def _batch(self, ids: Any, rows: Any) -> tuple[Any, Any]:
        length = self._work.time
        found = np.stack([ids[row * length : (row + 1) * length + 1] for row in rows])
        return torch.from_numpy(found[:, :-1]), torch.from_numpy(found[:, 1:])


def _ids(file: Path) -> Any:
    return np.fromfile(file, "<u2").astype(np.int64) if file.exists() else None


def _plain(work: Work, folder: str) -> Any:
    from safetensors.torch import load_file

    from bench.training.torch_model import Llama

    model = Llama(work.config, work.time)
    weights = load_file(f"{folder}/hf/model.safetensors")
    weights.pop("lm_head.weight", None)  # the embedding
    model.load_state_dict(weights)
    return model


def _transformers(folder: str) -> Any:
    import transformers

    name = "dtype" if transformers.__version__ >= "5" else "torch_dtype"
    model = transformers.AutoModelForCausalLM.from_pretrained(
        f"{folder}/hf", **{name: torch.float32}, attn_implementation="sdpa", use_cache=False
    )
    model.train()
    return _Logits(model)


class _Logits(torch.nn.Module):
    """Transformers' model as a function of ids alone."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Any) -> Any:
        return self.model(tokens).logits


def _adamw(model: Any, work: Work) -> Any:
    """Decay on matrices alone."""
    weights = list(model.parameters())
    groups = [
        {"params": [w for w in weights if w.ndim >= 2], "weight_decay": DECAY},
        {"params": [w for w in weights if w.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=(BETA1, work.beta2), eps=EPSILON, fused=True)
