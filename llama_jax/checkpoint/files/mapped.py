"""A mapped file that has become shorter: to read where it ended would end the process (SIGBUS)."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np


def still_whole(view: np.ndarray) -> np.ndarray:
    """An array, once the file under it is known to be as long as it was."""
    check_whole(view)
    return view


def check_whole(view: np.ndarray) -> None:
    """ValueError where the file under an array is shorter now than when it was mapped.

    It costs one question to the system. What cuts the file off between this and the reading is not
    noticed, so whoever reads much asks before every part.
    """
    name: Any = None
    base: Any = view
    while base is not None and not isinstance(base, mmap.mmap):
        name = getattr(base, "filename", name)  # of a np.memmap
        base = getattr(base, "base", None)
    if base is not None and (now := base.size()) < len(base):
        raise ValueError(
            f"{name or 'a mapped file'} had {len(base):,} bytes when it was opened and has {now:,} "
            "now; let whatever writes it end, and try again"
        )
