"""What all processes of a job hold, so that all decide alike. Each must ask, in the same order."""

from __future__ import annotations

import numpy as np
from jax.experimental import multihost_utils


def all_of(mine: bool) -> bool:
    """Whether every process says so."""
    return bool(multihost_utils.process_allgather(np.asarray(mine)).all())


def largest_of(mine: int) -> int:
    """The largest number that a process has, below 2**31."""
    return int(multihost_utils.process_allgather(np.asarray(mine, np.int32)).max())
