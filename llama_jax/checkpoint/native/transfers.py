"""Blocks of weights on their way between memory and disk, some at once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import tensorstore as ts

from llama_jax.tokenizer.foreign import plain
from llama_jax.weights.table import WeightPath

MAX_BYTES = 96 << 20
"""Bytes on their way between memory and disk at once."""


class Transfer(NamedTuple):
    """A block of a weight between memory and disk."""

    path: WeightPath
    nbytes: int
    future: ts.Future
    memory: Any
    """Not for TensorStore's threads to free, which would wait for Python to do it."""


class StoreError(Exception):
    """TensorStore's error, whose own type depends on its status code, in one line."""

    def __init__(self, path: WeightPath, error: Exception) -> None:
        super().__init__(short(error))
        self.path = path


def finished(transfers: Iterable[Transfer]) -> Iterator[WeightPath]:
    """Takes `transfers`, each of which starts as it is taken; yields, in turn, whose are done."""
    waiting: list[Transfer] = []
    try:
        for transfer in transfers:
            waiting.append(transfer)
            if sum(transfer.nbytes for transfer in waiting) > MAX_BYTES:
                half = (len(waiting) + 1) // 2
                yield from wait_for(waiting[:half])
                del waiting[:half]
        yield from wait_for(waiting)
        waiting.clear()
    finally:
        for transfer in waiting:  # a file must not appear after its directory was removed
            with contextlib.suppress(StoreError):
                finish(transfer.path, transfer.future)


def wait_for(transfers: Sequence[Transfer]) -> list[WeightPath]:
    """Waits for all, for the newest first: the others are then done, and it waited but once."""
    for transfer in reversed(transfers):
        finish(transfer.path, transfer.future)
    return [transfer.path for transfer in transfers]


def finish(path: WeightPath, future: ts.Future) -> Any:
    """What TensorStore was to do for a weight, once it is done."""
    try:
        return future.result()
    except Exception as error:
        raise StoreError(path, error) from error


def short(error: Exception) -> str:
    """TensorStore's messages end in a dump of their source lines and specs."""
    said = f"{error}\n".splitlines()[0].split(" [", 1)[0]
    return plain(said or type(error).__name__)
