"""The states of a training run, written and read as the loop of training does: for the faults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llama_jax.train.saves import Saves
from llama_jax.train.state import TrainState

ABSENT = "absent"
DTYPES = ("float32", "bfloat16")
"""Of the checkpoint before and of the one after, so that a mixture of both is neither."""
KEPT = 2
"""How many states of a run stay."""


def save(folder: Path, step: int) -> None:
    """Saves a state to the end, as the loop of training does."""
    states = Saves(folder, keep=KEPT)
    try:
        states.save(_state(step))
        states.wait()
    finally:
        states.close()


def newest(folder: Path) -> tuple[int, list[str]]:
    """The step of the newest state, and what is said of damaged ones; its numbers are checked."""
    states, told = Saves(folder, keep=KEPT), list[str]()
    found = states.newest(_state(0), told.append)
    states.close()
    if found is None:
        return -1, told
    for ours, theirs in zip(*map(jax.tree.leaves, (_state(int(found.step)), found)), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    return int(found.step), told


def save_next(folder: Path, label: str) -> None:
    """Saves the next state of a run, of an even step for one label and an odd one for others.

    ValueError where the states that it left are not the newest two.
    """
    before = newest(folder)[0] if folder.exists() else -1
    step = before + 1 + (_parity(before + 1) != label)
    save(folder, step)
    left = {one.name for one in folder.iterdir()}
    if str(step) not in left or not left <= {str(step), str(before)}:
        raise ValueError(f"after steps {before} and {step} there are {sorted(left)}")


def read_newest(folder: Path) -> str:
    """Which label the newest state has, or `ABSENT`; ValueError where one is damaged."""
    step, told = newest(folder)
    if told:
        raise ValueError(f"the newest state is {step}, and of others: {told}")
    return _parity(step) if step >= 0 else ABSENT


def _parity(step: int) -> str:
    return DTYPES[step % 2]


def _state(step: int) -> TrainState:
    """A state of which every number says the step."""
    count, norm = jnp.int32(step), jnp.float32(step)
    weights: Any = {"a": jnp.full((3, 5), norm), "b": jnp.full(7, -norm)}
    return TrainState(count, weights, weights, None, norm, count, count)
