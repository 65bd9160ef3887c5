"""Numbers of an engine, for metrics."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass
class Counts:
    """What was done since the start."""

    prompt_tokens: int = 0
    """Tokens of prompts, those included that were `cached_tokens`."""
    cached_tokens: int = 0
    """Tokens of prompts that were not read, because their keys and values were there."""
    new_tokens: int = 0
    nan_rows: int = 0
    """Completions whose logits were NaN or infinite."""


@dataclasses.dataclass
class Stats(Counts):
    """What an engine does, and has done since its start."""

    running: int = 0
    """Completions that have a seat."""
    waiting: int = 0
    """Requests that have none yet."""
    pages: int = 0
    """Pages of 64 tokens for keys and values."""
    used_pages: int = 0
    preemptions: int = 0
    """How often a completion lost its pages to an older one, and was read again."""
