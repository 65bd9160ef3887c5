"""The weight files of a Hugging Face folder, and the tensors in them by name."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np

from llama_jax.checkpoint.files.json_file import read_object, shown
from llama_jax.checkpoint.files.messages import FETCH_AGAIN, listed, shorten
from llama_jax.checkpoint.files.safe_paths import check_inside
from llama_jax.checkpoint.files.safetensors_file import read_safetensors
from llama_jax.checkpoint.files.torch_file import is_torch_file, read_state_dict
from llama_jax.checkpoint.foreign import plain_names
from llama_jax.tokenizer.folder import is_there

# The order in which transformers looks for them.
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_NUMBERED = re.compile(r"(model|pytorch_model)-(\d+)-of-(\d+)\.(safetensors|bin)")
_MAX_FILES = 10_000
_ENDINGS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".npz")


@dataclasses.dataclass(frozen=True)
class HFTensors:
    """Every tensor of a model, memory-mapped, whichever file it lies in."""

    files: tuple[Path, ...]
    arrays: dict[str, np.ndarray]
    """By Hugging Face's names."""
    file_of: dict[str, Path]
    notes: tuple[str, ...]


def has_weights(folder: Path) -> bool:
    """Whether weights lie in a folder under the names that transformers gives them."""
    return any((folder / name).is_file() for name in WEIGHTS) or bool(_numbered(folder))


def open_tensors(folder: Path) -> HFTensors:
    """Maps the weight files: the one, all that the index names, or all that are numbered.

    What a file holds tells which kind it is. Of a tensor in two files the index decides.
    """
    found, notes = [name for name in WEIGHTS if (folder / name).is_file()], []
    index: dict[str, str] = {}
    if not found:
        names, said = _all_numbered(folder)
        notes.append("no index: the numbered files are read, all of which are there")
    else:
        index = _read_index(folder / found[0]) if found[0].endswith(".index.json") else {}
        names, said = sorted(set(index.values())) or found[:1], found[0]
    files = tuple(_file(folder, name, of=said) for name in names)
    arrays: dict[str, np.ndarray] = {}
    file_of: dict[str, Path] = {}
    twice = []
    for file in files:
        for tensor, array in _read(file).items():
            if index.get(tensor, file.name) != file.name:
                twice.append(tensor)
                continue
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
    if twice:
        notes.append(f"stored in two files, and read from the one in the index: {listed(twice)}")
    renamed, note = plain_names(arrays)
    return HFTensors(
        files,
        {renamed[name]: array for name, array in arrays.items()},
        {renamed[name]: file for name, file in file_of.items()},
        (*notes, *([note] if note else [])),
    )


def _read(file: Path) -> dict[str, np.ndarray]:
    return read_state_dict(file) if is_torch_file(file) else read_safetensors(file)


def _numbered(folder: Path) -> dict[tuple[str, str, str], set[int]]:
    """The numbers of the numbered files, by what they are of: ("model", "00002", "safetensors")."""
    found: dict[tuple[str, str, str], set[int]] = {}
    for file in folder.iterdir() if folder.is_dir() else ():
        if match := _NUMBERED.fullmatch(file.name):
            stem, number, count, ending = match.groups()
            found.setdefault((stem, count, ending), set()).add(int(number))
    return found


def _all_numbered(folder: Path) -> tuple[list[str], str]:
    """The numbered files, where all of them are there and of one model."""
    groups = _numbered(folder)
    if not groups:
        raise ValueError(_no_weights(folder))
    if len(groups) > 1:
        kinds = listed([f"{stem}-*-of-{count}.{end}" for stem, count, end in sorted(groups)])
        raise ValueError(
            f"{folder} holds files of several models, {kinds}, and no index tells which is meant; "
            f"copy the model's {WEIGHTS[1]} there, or remove the others"
        )
    ((stem, count, ending), there) = next(iter(groups.items()))
    numbers = range(1, min(int(count), _MAX_FILES) + 1)
    names = [f"{stem}-{n:0{len(count)}}-of-{count}.{ending}" for n in numbers]
    if missing := [name for name in names if not (folder / name).exists()]:
        raise ValueError(
            f"{folder} holds {len(there)} of {int(count)} numbered files and lacks "
            f"{listed(missing)}; {FETCH_AGAIN}"
        )
    return names, f"-of-{count}"


def _no_weights(folder: Path) -> str:
    """What lies there in place of weights, and the way out."""
    if gone := [name for name in WEIGHTS if (folder / name).is_symlink()]:
        return f"{folder / gone[0]} is a link to a file that is not there; {FETCH_AGAIN}"
    others = other_weights(folder) or "; download them beside config.json"
    return f"{folder} has no weights, neither {' nor '.join(WEIGHTS)}{others}"


def other_weights(folder: Path) -> str | None:
    """What a folder holds in place of weights under known names: how a sentence on it ends."""
    files = [file for file in folder.iterdir() if file.is_file()]
    names = sorted(file.name for file in files if file.name.endswith(_ENDINGS))
    for name in names:
        if name.startswith("adapter_model."):
            return (
                f", but {name}, a LoRA adapter alone; open the model that it was trained on, and "
                "give this folder as its adapter: load(..., adapter=...), --adapter"
            )
        if name.endswith(".gguf"):
            return f", but {name}; pass that file's own path"
    if len(names) == 1:
        right = WEIGHTS[0] if names[0].endswith(".safetensors") else WEIGHTS[2]
        return f", but {names[0]}; if that is the whole model, call it {right}"
    if names:
        return (
            f", but {listed(names)}; write an index that places the tensors in them, "
            f'{WEIGHTS[1]} with {{"weight_map": {{NAME: FILE}}}}, or download the model\'s'
        )
    return None


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
    if not is_there(file):
        raise FileNotFoundError(f"{file} is not there, and {of} names it; {FETCH_AGAIN}")
    check_inside(folder, file)
    return file
