"""Batches of rows: what a training step reads, made by each process for its own devices."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, Sharding
from jax.sharding import PartitionSpec as P

from llama_jax.sharding.arrays import sharding_of
from llama_jax.train.order import Order
from llama_jax.train.rows import Batch, Rows
from llama_jax.validation import check_count
from llama_jax.weights.table import BATCH

_BATCH = P(BATCH, None)  # [batch, time]
Made = TypeVar("Made")


def batch_sharding(mesh: Mesh | None, batch: int) -> Sharding:
    """How a batch lies on a mesh: rows over `data` and `fsdp`. Without one, on one device."""
    if mesh is None:
        return jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    sharding = sharding_of(mesh, _BATCH)
    parts = mesh.shape.get("data", 1) * mesh.shape.get("fsdp", 1)
    if batch % parts:
        raise ValueError(
            f"batch={batch} is not a multiple of data x fsdp = {parts}, over which its rows are "
            "cut; choose a multiple"
        )
    return sharding


def training_batches(
    rows: Rows, order: Order, sharding: Sharding, *, step: int = 0
) -> Generator[Batch, None, None]:
    """The batches from `step` on, without end; the next one is made while one is in use."""
    with contextlib.closing(numbered_batches(rows, order, sharding, step=step)) as found:
        for _, batch in found:
            yield batch


def numbered_batches(
    rows: Rows, order: Order, sharding: Sharding, *, step: int = 0
) -> Generator[tuple[np.ndarray, Batch], None, None]:
    """The same, each with the ids of its rows in all processes."""

    def make(step: int) -> tuple[np.ndarray, Batch]:
        ids = order.at(step)
        return ids, put(rows, ids, sharding)

    return _ahead(make, step)


def put(rows: Rows, ids: np.ndarray, sharding: Sharding) -> Batch:
    """The rows `ids` on devices: each process reads those that its own devices hold.

    Ids of -1 are rows of padding.
    """
    read: dict[tuple[int, int], Batch] = {}  # devices may hold the same rows

    def field(name: str) -> jax.Array:
        def part(index: Any) -> np.ndarray:
            begin, end, _ = index[0].indices(len(ids))
            if (begin, end) not in read:
                read[begin, end] = _padded(rows, ids[begin:end])
            return getattr(read[begin, end], name)

        dtype = np.float32 if name == "weights" else np.int32
        return jax.make_array_from_callback((len(ids), rows.time), sharding, part, dtype)

    return Batch(*(field(one.name) for one in dataclasses.fields(Batch)))


def evaluation_batches(rows: Rows, batch: int, sharding: Sharding) -> Generator[Batch, None, None]:
    """All rows once, in order; the last batch is filled up with rows of weight 0."""
    check_count("batch", batch)
    count = -(-len(rows) // batch)

    def make(index: int) -> Batch:
        ids = np.arange(index * batch, (index + 1) * batch)
        return put(rows, np.where(ids < len(rows), ids, -1), sharding)

    return _ahead(make, 0, count)


def _padded(rows: Rows, ids: np.ndarray) -> Batch:
    """The rows `ids`, with zeros where an id is -1."""
    if (ids >= 0).all():
        return rows.read(ids)
    found = rows.read(ids[ids >= 0])

    def fill(some: np.ndarray) -> np.ndarray:
        whole = np.zeros((len(ids), rows.time), some.dtype)
        whole[ids >= 0] = some
        return whole

    return jax.tree.map(fill, found)


def _ahead(
    make: Callable[[int], Made], first: int, end: int | None = None
) -> Generator[Made, None, None]:
    """make(first), make(first + 1), ..., each begun by a thread while the one before is in use."""
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as thread:
        coming = None if end == first else thread.submit(make, first)
        try:
            for index in itertools.count(first + 1):
                if coming is None:
                    return
                batch = coming.result()
                coming = None if index == end else thread.submit(make, index)
                yield batch
        finally:
            if coming is not None:
                coming.cancel()
