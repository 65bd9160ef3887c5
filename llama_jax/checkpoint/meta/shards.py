"""The files consolidated.NN.pth: one per rank of the model parallelism that Meta trained with."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from llama_jax.checkpoint.blocks import same_bits
from llama_jax.checkpoint.dtypes import DTYPES
from llama_jax.checkpoint.files.messages import no_weight, shorten
from llama_jax.checkpoint.files.safe_paths import check_inside
from llama_jax.checkpoint.files.torch_file import read_state_dict
from llama_jax.checkpoint.foreign import plain_meta_names

_NAME = re.compile(r"consolidated\.([0-9]{1,6})\.pth")
ROW_PARALLEL = ("wo", "w2")
"""The matrices cut along what goes in. Every other is cut along what comes out, but for the
embedding: LLaMA 1 and 2 cut its columns, Llama 3 its rows."""
# Constants that Meta's modules used to register as buffers; the model computes its own.
_BUFFER = re.compile(
    r"rope\.freqs|layers\.[0-9]+\.attention\.(mask|rope\.freqs|inner_attention\.rope\.freqs)"
)
_MAX_DRIFT = 0.01


@dataclasses.dataclass(frozen=True)
class Shards:
    """Every rank's files and pieces, in the order of the ranks."""

    files: tuple[Path, ...]
    pieces: dict[str, tuple[np.ndarray, ...]]
    """By Meta's name, one memory-mapped piece per file. The buffers are left out."""
    buffers: tuple[str, ...]
    frequencies: dict[str, np.ndarray]
    """RoPE's, of the buffers."""
    notes: tuple[str, ...]


def open_shards(folder: Path) -> Shards:
    """Maps every file, and checks that none is missing and that all name the same tensors."""
    files = _files(folder)
    named = [_plain(read_state_dict(file)) for file in files]
    states, notes = [state for state, _ in named], [note for _, note in named if note]
    for file, state in zip(files[1:], states[1:], strict=True):
        if differing := sorted(states[0].keys() ^ state.keys()):
            lacking = file if differing[0] in states[0] else files[0]
            raise ValueError(
                f"{lacking} lacks {shorten(differing[0])}, which other shards of the model have; "
                "the files belong to different models, or one is damaged"
            )
    buffers = tuple(name for name in states[0] if _BUFFER.fullmatch(name))
    names = [name for name in states[0] if name not in buffers]
    return Shards(
        files,
        {name: tuple(state[name] for state in states) for name in names},
        buffers,
        {name: states[0][name] for name in buffers if name.endswith("freqs")},
        tuple(dict.fromkeys(notes)),
    )


def _plain(state: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], str | None]:
    """The tensors by Meta's own names, and a note where a prefix was taken away."""
    names, note = plain_meta_names(state)
    return {names[name]: array for name, array in state.items()}, note


def _files(folder: Path) -> tuple[Path, ...]:
    found: dict[int, Path] = {}
    for file in sorted(folder.iterdir()):
        if match := _NAME.fullmatch(file.name):
            rank = int(match[1])
            if rank in found:
                raise ValueError(f"{file} and {found[rank].name} are both shard {rank}; remove one")
            check_inside(folder, file)
            found[rank] = file
    if not found:
        raise ValueError(
            f"{folder} has no consolidated.00.pth; download Meta's weights beside params.json"
        )
    for rank in range(len(found)):
        if rank not in found:
            raise ValueError(
                f"{folder} has shard {max(found):02} but no consolidated.{rank:02}.pth; "
                "copy or download it"
            )
    return tuple(found[rank] for rank in range(len(found)))


def check_dtypes(shards: Shards, name: str) -> None:
    """Checks that a tensor is of one dtype in all files, and of one that is a weight's."""
    for file, piece in zip(shards.files, shards.pieces[name], strict=True):
        if piece.dtype not in DTYPES.values():
            raise ValueError(f"{file}: {name!r} is {piece.dtype}; {no_weight(piece.dtype)}")
        if piece.dtype != shards.pieces[name][0].dtype:
            raise ValueError(
                f"{file}: {name!r} is {piece.dtype}, and {shards.pieces[name][0].dtype} in "
                f"{shards.files[0].name}; the files belong to different models"
            )


def check_shapes(shards: Shards, name: str, part: tuple[int, ...], whole: tuple[int, ...]) -> None:
    """Checks that every file holds `part` of the `whole`."""
    for file, piece in zip(shards.files, shards.pieces[name], strict=True):
        if piece.shape != part:
            among = f"{list(part)}, its part of {list(whole)} in {len(shards.files)} files"
            expected = f"{list(whole)}" if part == whole else among
            raise ValueError(
                f"{file}: {name!r} has shape {list(piece.shape)} where params.json says "
                f"{expected}; one of the two is damaged or belongs to another model"
            )


def check_replicas(shards: Shards, name: str, copies: int) -> None:
    """Checks that each run of `copies` neighbouring files holds one and the same piece."""
    pieces = shards.pieces[name]
    for index, piece in enumerate(pieces):
        first = index - index % copies
        row_bytes = piece[:1].nbytes
        if index != first and not same_bits(
            pieces[first].__getitem__, piece.__getitem__, len(piece), row_bytes
        ):
            raise ValueError(
                f"{shards.files[index]}: {name!r} differs from {shards.files[first].name}'s, of "
                "which it should be a copy; the files are damaged or belong to different models"
            )


def check_drift(shards: Shards, name: str) -> None:
    """Refuses files whose copies of a norm are not one norm's."""
    if drift(shards, name) > _MAX_DRIFT:
        raise ValueError(
            f"the files of {shards.files[0].parent} hold copies of {name!r} that differ by more "
            f"than {_MAX_DRIFT:.0%}; they are damaged or belong to different models"
        )


def drift(shards: Shards, name: str) -> float:
    """How far the files' copies of a vector are apart, in parts of its largest value.

    Training keeps a copy on every rank, and rounding may part them by a last bit.
    """
    pieces: Sequence[np.ndarray] = shards.pieces.get(name, ())
    if not pieces or pieces[0].ndim != 1 or not pieces[0].size:
        return 0.0
    if len({piece.tobytes() for piece in pieces}) == 1:
        return 0.0
    first, *others = (piece.astype(np.float32) for piece in pieces)
    apart = max(float(np.max(np.abs(first - other))) for other in others)
    drifted = apart / (float(np.max(np.abs(first))) or 1.0)
    return drifted if math.isfinite(drifted) else math.inf
