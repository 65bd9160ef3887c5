"""Token files that others wrote: nanoGPT's and llm.c's `.bin`, memory-mapped as they are.

nanoGPT's is uint16 tokens and nothing else. llm.c's begins with 256 int32: a magic number, a
version and the count of tokens, which follow as uint16 (GPT-2) or uint32 (Llama 3). None of them
says where a document starts or which tokenizer it is of.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from llama_jax.checkpoint.files.regular import open_regular

_HEADER = 256 * 4
_LLM_C: dict[int, tuple[int, np.dtype]] = {
    20240520: (1, np.dtype("<u2")),
    20240801: (7, np.dtype("<u4")),
}
"""By magic number: the version that is read, and the tokens' dtype."""
_LLM_C_EVALUATION = 20240522
_SPLITS = {
    "train": re.compile(r"(^|[_.-])train([_.-]|$)"),
    "validation": re.compile(r"(^|[_.-])val(id|idation)?([_.-]|$)"),
}
_LAID_OUT = (
    "a folder of `llama-jax tokenize` has a manifest.json, and one of nanoGPT's or llm.c's has "
    "train.bin and val.bin, or several files with these words in their names"
)


def foreign_shards(path: Path) -> dict[str, tuple[np.ndarray, ...]]:
    """The shards of each split, "train" and "validation", in a folder of `.bin` files, or one."""
    if path.is_file():
        return {"train": (open_foreign(path),)}
    if not path.is_dir():
        raise FileNotFoundError(f"{path} does not exist; name a folder of tokens or a .bin file")
    files = sorted(file for file in path.iterdir() if file.suffix == ".bin")
    found = {
        split: tuple(open_foreign(file) for file in files if named.search(file.stem))
        for split, named in _SPLITS.items()
    }
    if not found["train"]:
        raise ValueError(f"{path} holds no tokens to train on; {_LAID_OUT}")
    return {split: shards for split, shards in found.items() if shards}


def open_foreign(file: Path) -> np.ndarray:
    """The tokens of one file of nanoGPT's or llm.c's."""
    with open_regular(file) as opened:
        start, size = opened.read(_HEADER), file.stat().st_size
    magic = int.from_bytes(start[:4], "little")
    if magic == _LLM_C_EVALUATION:
        raise ValueError(f"{file} holds questions for llm.c's evaluation, not tokens to train on")
    if magic not in _LLM_C:
        if size % 2 or not size:
            raise ValueError(
                f"{file} has {size:,} bytes, which are no uint16 tokens, and no header of llm.c's; "
                "it was cut short, so copy it again"
            )
        return np.memmap(file, "<u2", "r")
    known, dtype = _LLM_C[magic]
    if len(start) < _HEADER:
        raise ValueError(f"{file} ends within llm.c's header; copy it again")
    version, count = np.frombuffer(start, "<i4", count=2, offset=4).tolist()
    if version != known:
        raise ValueError(f"{file} is llm.c's version {version} of magic {magic}; {known} is read")
    if size != _HEADER + count * dtype.itemsize or count < 1:
        raise ValueError(
            f"{file} has {size:,} bytes, and its header says {count:,} tokens, which take "
            f"{_HEADER + count * dtype.itemsize:,}; it was cut short or changed, so copy it again"
        )
    return np.memmap(file, dtype, "r", offset=_HEADER)
