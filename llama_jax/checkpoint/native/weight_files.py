"""The `weights/` of a native checkpoint: an Orbax directory, written and read block by block.

Orbax itself holds every weight in memory at once while it saves, and twice each while it casts or
places it. So Orbax describes the tree (its public `TypeHandler` is the door for a leaf it does not
know), and TensorStore, which is what Orbax writes with, moves the values. Plain Orbax restores
the result like any other checkpoint.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tensorstore as ts

from llama_jax.checkpoint.blocks import Cast, Tensor, cells, host_block, whole
from llama_jax.checkpoint.native.described import check_described
from llama_jax.checkpoint.native.transfers import StoreError, Transfer, finish, finished, short
from llama_jax.checkpoint.placing import Index, Placing
from llama_jax.weights.params import nested
from llama_jax.weights.table import WeightPath

FILE_BYTES = 32 << 20
"""About how much of a weight one file holds, which is what is written at a time."""


def describe(directory: Path, weights: dict[WeightPath, jax.ShapeDtypeStruct]) -> None:
    """Has Orbax save a tree of weights without values; `fill` brings each one's."""
    import orbax.checkpoint as ocp

    class Describe(ocp.type_handlers.TypeHandler):
        def typestr(self) -> str:
            return "np.ndarray"  # what plain Orbax restores where no target says otherwise

        async def serialize(self, values: Any, infos: Any, args: Any = None) -> list[Any]:
            for value, info in zip(values, infos, strict=True):
                where = Path(info.parent_dir) / info.name
                try:
                    ts.open(_spec(where, value), create=True).result()
                except Exception as error:
                    raise OSError(f"cannot write {where}: {short(error)}") from error
            return []

        async def metadata(self, infos: Any) -> Any:
            raise NotImplementedError("this handler writes descriptions, and reads nothing")

        async def deserialize(self, infos: Any, args: Any = None) -> Any:
            raise NotImplementedError("this handler writes descriptions, and reads nothing")

    # One directory per weight (no OCDBT database), so that values can come after the description.
    registry = ocp.type_handlers.create_type_handler_registry((jax.ShapeDtypeStruct, Describe()))
    here = jax.process_index()  # one process of a job writes, and Orbax is to wait for no other
    alone = ocp.options.MultiprocessingOptions(primary_host=here, active_processes={here})
    with _quiet():
        handler = ocp.PyTreeCheckpointHandler(
            use_ocdbt=False,
            use_zarr3=True,
            type_handler_registry=registry,
            multiprocessing_options=alone,
        )
        with ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
            checkpointer.save(directory, ocp.args.PyTreeSave(nested(weights)))


def fill(
    directory: Path, path: WeightPath, tensor: Tensor, moved: Callable[[int], None]
) -> Iterator[str]:
    """Writes the values of one described weight, cast to the dtype described; yields warnings.

    `moved` is told the bytes of each block. Memory: a few blocks of `FILE_BYTES`.
    """
    store = open_weight(directory, path)
    cast_to = Cast(store.dtype.numpy_dtype)

    def write(index: Index) -> Transfer:
        cast = cast_to(host_block(tensor, index))
        moved(cast.nbytes)
        # Nobody writes to the block again, so TensorStore need not copy it.
        writing = store[index].write(cast, can_reference_source_data_indefinitely=True)
        return Transfer(path, cast.nbytes, writing.commit, cast)

    try:
        for _ in finished(map(write, cells(whole(store.shape), _file_sides(store)))):
            pass
    except StoreError as error:
        raise OSError(f"cannot write {directory / name(path)}: {error}") from error
    yield from cast_to.warnings(name(path))


def stored(directory: Path) -> dict[WeightPath, jax.ShapeDtypeStruct]:
    """Every weight that lies in `directory`, by what its own metadata says of it."""
    found = sorted(entry.parent.name for entry in directory.glob("*/zarr.json"))
    for folder in found:
        check_described(directory / folder)
    stores = open_weights(directory, [tuple(folder.split(".")) for folder in found])
    return {p: jax.ShapeDtypeStruct(s.shape, s.dtype.numpy_dtype) for p, s in stores.items()}


def read(
    directory: Path, wanted: Mapping[WeightPath, tuple[jax.sharding.Sharding, np.dtype]]
) -> dict[WeightPath, jax.Array]:
    """Weights, placed: each process reads what its own devices need, and holds it once.

    Many are read at once and waited for together: where another thread runs Python, this one gets
    its turn back only milliseconds after each wait.
    """
    stores, begun = open_weights(directory, wanted), dict[WeightPath, Placing]()

    def reads() -> Iterator[Transfer]:
        for path, (sharding, dtype) in wanted.items():
            begun[path] = Placing(stores[path].shape, dtype, sharding)
            for index, out in begun[path].targets:
                yield from _reads(stores[path], path, index, out)

    read = {}
    with _unreadable(directory):
        for path, all_of_it in itertools.groupby(finished(reads())):
            for _ in all_of_it:
                pass
            read[path] = begun.pop(path).placed()
    return read | {path: empty.placed() for path, empty in begun.items()}


def read_part(directory: Path, path: WeightPath, index: Index, out: np.ndarray) -> None:
    """Reads a part of one weight into `out`, in the dtype of `out`; memory: a few chunks."""
    with _unreadable(directory):
        for _ in finished(_reads(open_weight(directory, path), path, index, out)):
            pass


def name(path: WeightPath) -> str:
    """What Orbax calls a weight, and what people are told."""
    return ".".join(path)


def _reads(
    store: ts.TensorStore, path: WeightPath, index: Index, out: np.ndarray
) -> Iterator[Transfer]:
    """Begins to read a part of a weight, file by file."""
    stored = ts.cast(store, out.dtype.name)
    target = ts.array(out)[ts.d[:].translate_to[[cut.start for cut in index]]]
    for cell in cells(index, _file_sides(store)):
        size = math.prod(cut.stop - cut.start for cut in cell) * out.itemsize
        yield Transfer(path, size, target[cell].write(stored[cell]).commit, target)


@contextlib.contextmanager
def _unreadable(directory: Path) -> Iterator[None]:
    try:
        yield
    except StoreError as error:
        raise ValueError(f"{directory / name(error.path)} cannot be read: {error}") from error


def open_weight(directory: Path, path: WeightPath) -> ts.TensorStore:
    """A weight's array on disk."""
    return open_weights(directory, [path])[path]


def open_weights(directory: Path, paths: Iterable[WeightPath]) -> dict[WeightPath, ts.TensorStore]:
    """The arrays on disk of these weights, opened together."""
    within = _real(directory)
    opening = {
        path: ts.open(
            {
                "driver": "zarr3",
                "kvstore": {"driver": "file", "path": f"{within / name(path)}/"},
                "store_data_equal_to_fill_value": True,
                "fill_missing_data_reads": False,
            },
            open=True,
        )
        for path in paths
    }
    with _unreadable(directory):
        return {path: finish(path, future) for path, future in opening.items()}


def _real(path: Path) -> Path:
    """TensorStore refuses "..", and the system follows a link before it goes up from it."""
    return Path(os.path.realpath(path))


def _spec(where: Path, weight: jax.ShapeDtypeStruct) -> dict[str, Any]:
    chunk = [_side(size) for size in weight.shape]
    codecs: list[Any] = [{"name": "bytes", "configuration": {"endian": "little"}}]
    codecs += [{"name": "crc32c"}]  # no compression: it gains nothing on trained weights
    # Files of other projects hold a matrix as [out, in], so a band of our columns is contiguous
    # there; only the embedding lies as we hold it, and is cut into bands of rows.
    axis = 0 if where.name.startswith("tok_embeddings") else len(chunk) - 1
    grid = {"chunk_shape": _file_shape(weight, chunk, axis)}
    parts = {"chunk_shape": chunk, "codecs": codecs, "index_codecs": codecs}
    return {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": f"{_real(where)}/"},
        "dtype": np.dtype(weight.dtype).name,
        "metadata": {
            "shape": weight.shape,
            "chunk_grid": {"name": "regular", "configuration": grid},
            "codecs": [{"name": "sharding_indexed", "configuration": parts}],
        },
    }


def _side(size: int) -> int:
    """A chunk's side, the least that is read: a mesh that cuts an axis in 2, 4 or 8 cuts none."""
    if size <= 1024:
        return size
    side = size // 8 if size % 8 == 0 else 512
    while side > 512 and side % 2 == 0:
        side //= 2
    return min(side, 512)


def _file_shape(weight: jax.ShapeDtypeStruct, chunk: list[int], axis: int) -> list[int]:
    """A file's part of the weight: as many chunks along `axis` as fit, and all along the others."""
    shape = [math.ceil(size / side) * side for size, side in zip(weight.shape, chunk, strict=True)]
    band = math.prod(shape) // shape[axis] * chunk[axis] * np.dtype(weight.dtype).itemsize
    shape[axis] = min(shape[axis], chunk[axis] * max(1, FILE_BYTES // band))
    return shape


def _file_sides(store: ts.TensorStore) -> Sequence[int]:
    return store.chunk_layout.write_chunk.shape  # type: ignore[return-value]  # none is unknown


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without Orbax's log: its warnings are of what is so by design (no database to merge, no
    `jax.Array`), and its errors are the tracebacks of what it raises too."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
