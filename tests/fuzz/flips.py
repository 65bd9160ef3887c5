"""`python -m tests.fuzz.flips --bits N`: single bits of a checkpoint flipped, and who accepts it.

Each file is read as a conversion reads it, sums and all. With torch, its own file is tried too.
What a zip says to nobody, such as dates and padding, has no sum: a bit of it may be accepted where
all that is read is the same.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import hashlib
import os
import random
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np  # noqa: E402
from fuzz.seeds import make  # noqa: E402

from llama_jax.checkpoint.convert import convert  # noqa: E402
from llama_jax.checkpoint.export import export  # noqa: E402
from llama_jax.checkpoint.reading import open_checkpoint  # noqa: E402
from llama_jax.tokenizer import load_tokenizer  # noqa: E402

SHIPPED = Path(__file__).parents[2] / "llama_jax/pretrained"


def folders(root: Path) -> Iterator[tuple[str, Path]]:
    """A checkpoint of each kind that promises to notice a flipped bit."""
    seeds = make(root)
    yield "pth by Python's zipfile", seeds["pth"].folder
    export(seeds["pth"].folder, root / "exported", format="meta")
    yield "pth by export", root / "exported"
    with contextlib.suppress(ImportError):
        yield "pth by torch", _by_torch(seeds["pth"].folder, root / "torch")
    yield "native", seeds["native"].folder
    convert(seeds["tokenizer.json"].folder.parent / "hf", root / "with_tokenizer")
    yield "native of a Hugging Face folder", root / "with_tokenizer"
    shutil.copytree(SHIPPED, root / "shipped")
    yield "the model in pretrained/", root / "shipped"


def _by_torch(meta: Path, to: Path) -> Path:
    import torch

    shutil.copytree(meta, to)
    file = to / "consolidated.00.pth"
    torch.save(torch.load(file, weights_only=True), file)
    return to


def read(folder: Path) -> str:
    """The digest of all that a conversion reads; ValueError where anything is damaged."""
    source = open_checkpoint(folder)
    source.check_sums()
    found = hashlib.sha256(repr((source.config, source.notes, source.warnings)).encode())
    for name, tensor in source.tensors.items():
        array = np.empty(tensor.shape, tensor.dtype)
        tensor.read(tuple(slice(0, n) for n in tensor.shape), array)
        found.update(f"{name} {array.shape} {array.dtype}".encode() + array.tobytes())
    if source.tokenizer is not None:
        ids = load_tokenizer(source.tokenizer).encode("Once upon a time", bos=True, eos=True)
        found.update(repr(ids).encode())
    return found.hexdigest()


@dataclasses.dataclass(frozen=True)
class Accepted:
    """Flipped bits that were not refused, by where they lie."""

    same: collections.Counter[str]
    """What was read is what it was."""
    other: collections.Counter[str]


def flipped(folder: Path, bits: int, seed: int) -> Accepted:
    """How many of so many single flipped bits are accepted.

    A file is drawn as often as another, and of a zip half the bits are no record's.
    """
    rng, accepted = random.Random(seed), Accepted(collections.Counter(), collections.Counter())
    files = sorted(f for f in folder.rglob("*") if f.is_file() and f.name not in _UNREAD)
    sound = read(folder)
    for _ in range(bits):
        file = rng.choice(files)
        content = file.read_bytes()
        at, bit = rng.randrange(len(content)), rng.randrange(8)
        if file.suffix == ".pth" and rng.random() < 0.5:
            at = rng.choice(_outside(file))
        changed = bytearray(content)
        changed[at] ^= 1 << bit
        file.write_bytes(changed)
        try:
            found = read(folder)
        except (ValueError, OSError):
            found = None
        if found is not None:
            by_place = accepted.same if found == sound else accepted.other
            by_place[_place(file, content, at)] += 1
        file.write_bytes(content)
    return accepted


_UNREAD = ("params.json", "export.json", "README.md")
"""The first two have no sum; the card of the shipped model is no part of it."""


def _outside(file: Path) -> list[int]:
    """The bytes of a zip that are no record's."""
    with zipfile.ZipFile(file) as archive:
        inside: set[int] = set()
        for info in archive.infolist():
            with archive.open(info) as record:
                start = record._orig_compress_start  # type: ignore[attr-defined]
            inside.update(range(start, start + info.file_size))
    return [at for at in range(file.stat().st_size) if at not in inside]


def _place(file: Path, content: bytes, at: int) -> str:
    """A file's name, and of a zip how far from which header the byte lies."""
    if file.suffix != ".pth":
        return file.name
    marks = {b"PK\3\4": "local", b"PK\1\2": "directory", b"PK\5\6": "end", b"PK\6\6": "end64"}
    marks |= {b"PK\6\7": "locator", b"PK\7\x08": "descriptor"}
    before = {name: content.rfind(mark, 0, at + 1) for mark, name in marks.items()}
    nearest = max(before, key=lambda name: before[name])
    return f"{nearest} + {at - before[nearest]}"


def main() -> None:
    said = argparse.ArgumentParser(prog="python -m tests.fuzz.flips", description=__doc__)
    said.add_argument("--bits", type=int, default=1000)
    said.add_argument("--seed", type=int, default=0)
    said.add_argument("--only", help="a part of a kind's name, such as pth or native")
    given = said.parse_args()
    wrong = 0
    with tempfile.TemporaryDirectory() as root:
        for kind, folder in folders(Path(root)):
            if given.only is None or given.only in kind:
                accepted = flipped(folder, given.bits, given.seed)
                wrong += accepted.other.total() + ("pth" not in kind) * accepted.same.total()
                print(
                    f"{kind:32} {accepted.other.total()} of {given.bits} accepted and read as "
                    f"another; {accepted.same.total()} read as the same: {dict(accepted.same)}",
                    flush=True,
                )
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
