"""An adapter in a few lines, for people and for programs."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llama_jax.checkpoint.peft.inspection import PeftInspection


def adapter_rows(found: PeftInspection) -> dict[str, str]:
    """What a person wants to know of an adapter, by name."""
    others = Counter(rank for rank in found.ranks.values() if rank != found.rank)
    rank = ", ".join([str(found.rank), *(f"{rank} in {n} matrices" for rank, n in others.items())])
    by = "alpha / sqrt(rank), rslora" if found.rslora else "alpha / rank"
    return {
        "adapter": f"LoRA, {found.numbers:,} numbers in {' and '.join(found.dtypes)}",
        "rank": rank,
        "alpha": f"{found.alpha:g}, a scale of {found.scale:.4g} ({by})",
        "targets": f"{', '.join(found.targets)}; {len(found.ranks)} matrices in {found.layers} "
        "layers",
        "base": found.base or "not said",
    }


def adapter_json(found: PeftInspection) -> dict[str, Any]:
    """The same for programs."""
    counted = {"targets": found.targets, "layers": found.layers, "scale": found.scale}
    return {**dataclasses.asdict(found), **counted}
