"""The `weights/` of a native checkpoint: an Orbax directory, written and read block by block.

Orbax itself holds every weight in memory at once while it saves, and twice each while it casts or
places it. So Orbax describes the tree (its public `TypeHandler` is the door for a leaf it does not
know), and TensorStore, which is what Orbax writes with, moves the values. Plain Orbax restores
the result like any other checkpoint.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tensorstore as ts

from llama_jax.checkpoint.blocks import Cast, Tensor, cells, host_block, whole
from llama_jax.checkpoint.names import WeightPath
from llama_jax.checkpoint.placement import Index, place
from llama_jax.params import nested

FILE_BYTES = 32 << 20
"""About how much of a weight one file holds, which is what is written at a time."""
IN_FLIGHT = 3
"""Blocks on their way between memory and disk at once."""


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
                    raise OSError(f"cannot write {where}: {_short(error)}") from error
            return []

        async def metadata(self, infos: Any) -> Any:
            raise NotImplementedError("only describes")

        async def deserialize(self, infos: Any, args: Any = None) -> Any:
            raise NotImplementedError("only describes")

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
    store = _open(directory, path)
    cast_to = Cast(store.dtype.numpy_dtype)

    def write(index: Index) -> ts.Future:
        cast = cast_to(host_block(tensor, index))
        moved(cast.nbytes)
        # Nobody writes to the block again, so TensorStore need not copy it.
        return store[index].write(cast, can_reference_source_data_indefinitely=True).commit

    try:
        _keep_in_flight(write(index) for index in cells(whole(store.shape), _file_sides(store)))
    except _StoreError as error:
        raise OSError(f"cannot write {directory / name(path)}: {error}") from error
    yield from cast_to.warnings(name(path))


def stored(directory: Path) -> dict[WeightPath, jax.ShapeDtypeStruct]:
    """Every weight that lies in `directory`, by what its own metadata says of it."""
    found = sorted(entry.parent.name for entry in directory.glob("*/zarr.json"))
    paths = [tuple(folder.split(".")) for folder in found]
    stores = {path: _open(directory, path) for path in paths}
    return {p: jax.ShapeDtypeStruct(s.shape, s.dtype.numpy_dtype) for p, s in stores.items()}


def read(
    directory: Path, path: WeightPath, sharding: jax.sharding.Sharding, dtype: np.dtype
) -> jax.Array:
    """One weight, placed: each process reads what its own devices need, and holds it once."""
    shape = _open(directory, path).shape
    return place(shape, dtype, sharding, functools.partial(read_part, directory, path))


def read_part(directory: Path, path: WeightPath, index: Index, out: np.ndarray) -> None:
    """Reads a part of one weight into `out`, in the dtype of `out`; memory: a few chunks."""
    store = ts.cast(_open(directory, path), out.dtype.name)
    target = ts.array(out)[ts.d[:].translate_to[[cut.start for cut in index]]]
    try:
        _keep_in_flight(target[i].write(store[i]).commit for i in cells(index, _file_sides(store)))
    except _StoreError as error:
        raise ValueError(f"{directory / name(path)} cannot be read: {error}") from error


def name(path: WeightPath) -> str:
    """What Orbax calls a weight, and what people are told."""
    return ".".join(path)


class _StoreError(Exception):
    """TensorStore's error, whose own type depends on its status code, in one line."""


def _open(directory: Path, path: WeightPath) -> ts.TensorStore:
    where = directory / name(path)
    spec = {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": f"{where}/"},
        "store_data_equal_to_fill_value": True,
        "fill_missing_data_reads": False,
    }
    try:
        return ts.open(spec, open=True).result()
    except Exception as error:
        raise ValueError(f"{where} cannot be read: {_short(error)}") from error


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
        "kvstore": {"driver": "file", "path": f"{where}/"},
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


def _keep_in_flight(futures: Iterable[ts.Future]) -> None:
    """Draws on `futures`, each of which starts as it is drawn, and waits for the oldest in time."""
    waiting: list[ts.Future] = []
    try:
        for future in futures:
            waiting.append(future)
            if len(waiting) == IN_FLIGHT:
                _finish(waiting.pop(0))
        while waiting:
            _finish(waiting.pop(0))
    finally:
        for future in waiting:  # a file must not appear after its directory was removed
            with contextlib.suppress(_StoreError):
                _finish(future)


def _finish(future: ts.Future) -> None:
    try:
        future.result()
    except Exception as error:
        raise _StoreError(_short(error)) from error


def _short(error: Exception) -> str:
    """TensorStore's messages end in a dump of their source lines and specs."""
    return f"{error}\n".splitlines()[0].split(" [", 1)[0] or type(error).__name__


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without Orbax's warnings of what is so by design: no database to merge, no `jax.Array`."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
