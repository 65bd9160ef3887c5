"""What a run does before and between its steps, said where it takes long."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

PATIENCE = 2.0
"""Seconds without a word, after which a phase says what it is."""


@contextlib.contextmanager
def phase(say: Callable[[str], None], what: str) -> Iterator[None]:
    """Says `what` once, where its block is not done within `PATIENCE`."""
    told = threading.Timer(PATIENCE, say, [f"{what} ..."])
    told.daemon = True
    told.start()
    try:
        yield
    finally:
        told.cancel()
