"""What every contestant can be asked, and what it is made from.

Nothing here imports jax, torch or us: a peer's process holds what that peer needs and no more.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Protocol

Logits = Any


@dataclasses.dataclass(frozen=True)
class Run:
    """One decoding of a batch, greedy and without a stop."""

    tokens: list[list[int]]
    """The new ones of each row."""
    followed: int
    """How many of them, all rows together, came after every row had its first."""
    seconds: float
    """From then to the last."""


class Contestant(Protocol):
    """A loaded model: made from a file or folder, a dtype, a device and some sizes."""

    def decode(self, prompts: list[list[int]], new: int) -> Run: ...

    def prefill(self, prompt: list[int]) -> float:
        """Seconds from the prompt to the first token."""
        ...

    def logits(self, prompt: list[int]) -> Logits:
        """The float32 logits after the prompt's last token."""
        ...

    def peak_memory(self) -> int:
        """Bytes, on the device where the weights lie, at the most so far."""
        ...


@dataclasses.dataclass(frozen=True)
class Loading:
    """What a contestant is made from."""

    path: Path
    dtype: str
    device: str
    threads: int
    contexts: dict[int, int]
    """How many positions a row needs at most, by batch size."""
    binary: str | None = None
    """Of llama2.c."""
