"""Batches of rows: what a training step reads, made by each process for its own devices.

Row i of a split is its tokens i * time to (i + 1) * time, and the targets are the tokens one later:

    split    5 6 7 8 9 ...          time = 3
    row 0    tokens 5 6 7           targets 6 7 8
    row 1    tokens 8 9 ...         targets 9 ...
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh, Sharding
from jax.sharding import PartitionSpec as P

from llama_jax.sharding.arrays import sharding_of
from llama_jax.train.order import Order
from llama_jax.train.token_folder import TokenSplit
from llama_jax.validation import check_count
from llama_jax.weights.table import BATCH

SEPARATE, JOINED = "separate", "joined"
_BATCH = P(BATCH, None)  # [batch, time]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """Rows of tokens, each field [batch, time]; NumPy arrays before they are put on devices."""

    tokens: Any
    """int32."""
    targets: Any
    """int32: the token after each."""
    positions: Any
    """int32: from 0 at each document's start where documents are separate, else at the row's."""
    weights: Any
    """float32: how much a target counts in the loss; 0 for padding."""


class Rows(Protocol):
    """Rows of tokens by id."""

    @property
    def time(self) -> int:
        """Tokens in a row."""
        ...

    @property
    def whole(self) -> int:
        """Rows 0 to `whole` - 1 are what training reads."""
        ...

    def __len__(self) -> int:
        """All rows: the last may be padded."""
        ...

    def order(self, batch: int, *, seed: int) -> Order:
        """The order in which training reads its rows."""
        ...

    def read(self, ids: np.ndarray) -> Batch:
        """These rows, in new NumPy arrays."""
        ...


@dataclasses.dataclass(frozen=True)
class TextRows:
    """The rows of a split of text.

    `documents` is "separate", where positions restart at each document's start, so that attention
    can keep within it, or "joined", where a row is one text.
    """

    split: TokenSplit
    time: int
    documents: str

    def __post_init__(self) -> None:
        check_count("time", self.time)
        if self.documents not in (SEPARATE, JOINED):
            raise ValueError(f"documents={self.documents!r} must be {SEPARATE!r} or {JOINED!r}")
        if self.documents == SEPARATE and self.split.starts is None:
            raise ValueError(
                "these files do not say where a document starts; use documents='joined', or make "
                "the tokens with `llama-jax tokenize`"
            )
        if len(self.split) < 2:
            raise ValueError(
                f"the {self.split.name} split has {len(self.split)} tokens, so there is none to "
                "predict; add text"
            )

    @property
    def whole(self) -> int:
        """Rows that are full of tokens."""
        return (len(self.split) - 1) // self.time

    def __len__(self) -> int:
        return -(-(len(self.split) - 1) // self.time)

    def order(self, batch: int, *, seed: int) -> Order:
        """The order in which training reads the whole rows."""
        if not self.whole:
            raise ValueError(
                f"the {self.split.name} split has {len(self.split):,} tokens, and a row takes "
                f"{self.time + 1:,}; choose a shorter context, or add text"
            )
        return Order(self.whole, batch, seed)

    def read(self, ids: np.ndarray) -> Batch:
        """These rows, in new NumPy arrays."""
        shape = len(ids), self.time
        tokens, targets, positions = (np.zeros(shape, np.int32) for _ in range(3))
        weights = np.zeros(shape, np.float32)
        for row, id in enumerate(ids.tolist()):
            begin = id * self.time
            found = self.split.read(begin, begin + self.time + 1)
            count = len(found) - 1
            tokens[row, :count], targets[row, :count] = found[:-1], found[1:]
            weights[row, :count] = 1
            positions[row] = self._positions(begin)
        return Batch(tokens, targets, positions, weights)

    def _positions(self, begin: int) -> np.ndarray:
        """How far each of the row's tokens is from its document's start, or from the row's."""
        index = np.arange(begin, begin + self.time)
        starts = self.split.starts
        if self.documents == JOINED or starts is None:
            return index - begin
        first, last = np.searchsorted(starts, [begin, begin + self.time])
        inside = np.concatenate([[begin], starts[first:last].astype(np.int64)])
        return index - inside[np.searchsorted(inside, index, side="right") - 1]


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
) -> Iterator[Batch]:
    """The batches from `step` on, without end; the next one is made while one is in use."""

    def make(step: int) -> Batch:
        return put(rows, order.at(step), sharding)

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


def evaluation_batches(rows: Rows, batch: int, sharding: Sharding) -> Iterator[Batch]:
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


def _ahead(make: Callable[[int], Batch], first: int, end: int | None = None) -> Iterator[Batch]:
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
