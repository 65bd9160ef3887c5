"""The weight files of a Hugging Face folder, and the tensors in them by name."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from llama_jax.checkpoint.files.json_file import read_object, shown
from llama_jax.checkpoint.files.messages import FETCH_AGAIN, shorten
from llama_jax.checkpoint.files.safe_paths import check_inside
from llama_jax.checkpoint.files.safetensors_file import read_safetensors
from llama_jax.checkpoint.files.torch_file import read_state_dict

# The order in which transformers looks for them.
_KINDS = (
    ("model.safetensors", read_safetensors),
    ("model.safetensors.index.json", read_safetensors),
    ("pytorch_model.bin", read_state_dict),
    ("pytorch_model.bin.index.json", read_state_dict),
)
WEIGHTS = tuple(name for name, _ in _KINDS)


@dataclasses.dataclass(frozen=True)
class HFTensors:
    """Every tensor of a model, memory-mapped, whichever file it lies in."""

    files: tuple[Path, ...]
    arrays: dict[str, np.ndarray]
    file_of: dict[str, Path]


def open_tensors(folder: Path) -> HFTensors:
    """Maps the weight files: the one, or all that the index names."""
    found = [(name, read) for name, read in _KINDS if (folder / name).is_file()]
    if not found:
        if gone := [name for name in WEIGHTS if (folder / name).is_symlink()]:
            file = folder / gone[0]
            raise ValueError(f"{file} is a link to a file that is not there; {FETCH_AGAIN}")
        raise ValueError(
            f"{folder} has no weights, neither {' nor '.join(WEIGHTS)}; download them beside "
            "config.json"
        )
    name, read = found[0]
    index = _read_index(folder / name) if name.endswith(".index.json") else {}
    names = sorted(set(index.values())) or [name]
    files = tuple(_file(folder, name, of=found[0][0]) for name in names)
    arrays: dict[str, np.ndarray] = {}
    file_of: dict[str, Path] = {}
    for file in files:
        for tensor, array in read(file).items():
            if tensor in arrays:
                raise ValueError(
                    f"{file}: {shorten(tensor)} lies in {file_of[tensor].name} too; remove the "
                    "file that belongs to another model"
                )
            arrays[tensor], file_of[tensor] = array, file
    for tensor, name in index.items():
        if tensor not in arrays:
            raise ValueError(
                f"{folder / name} lacks {shorten(tensor)}, which its index says it has"
            )
    return HFTensors(files, arrays, file_of)


def _read_index(file: Path) -> dict[str, str]:
    """The name of each tensor's file."""
    check_inside(file.parent, file)
    weight_map = read_object(file).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{file} has no weight_map of tensors to files; {FETCH_AGAIN}")
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or not _is_plain(name):
            raise ValueError(
                f"{file} places {shorten(tensor)} in {shown(name)}, which is no name of a file "
                "beside it; a model's files lie in its own folder"
            )
    return weight_map


def _is_plain(name: str) -> bool:
    """Whether a name can only be that of a file in the folder itself."""
    return (
        name.isprintable()
        and 0 < len(name.encode()) < 256
        and not any(mark in name for mark in '/\\:"')
        and name not in (".", "..")
    )


def _file(folder: Path, name: str, of: str) -> Path:
    file = folder / name
    if not file.is_file():
        raise FileNotFoundError(f"{file} is not there, and {of} names it; {FETCH_AGAIN}")
    check_inside(folder, file)
    return file
