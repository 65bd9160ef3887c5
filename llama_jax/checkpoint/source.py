"""A checkpoint as it lies in somebody's files: known whole, read piece by piece."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import numpy as np

from llama_jax.checkpoint.blocks import ReadByPart, Stored, copy_in_bands
from llama_jax.checkpoint.files.mapped import check_whole
from llama_jax.checkpoint.files.safe_paths import check_inside
from llama_jax.checkpoint.files.torch_archive import check_sums
from llama_jax.checkpoint.files.torch_file import is_torch_file
from llama_jax.config import Config
from llama_jax.tokenizer import Tokenizer, find_tokenizer, tokenizer_files
from llama_jax.weights.table import WeightPath


@dataclasses.dataclass(frozen=True)
class StoredTensor(ReadByPart):
    """One weight in our layout, over the memory-mapped pieces that hold it.

    Indexing reads: `tensor[:, 16:32]` touches only the bytes it needs and returns an array of
    its own, never a view of the file.
    """

    pieces: tuple[np.ndarray, ...]
    """Views of the files, all of one dtype, alike but for `axis`."""
    axis: int
    """Where the pieces join, in the files' layout."""
    transposed: bool
    """Whether the files hold [out, in]."""
    half_split_heads: int | None = None
    """How many heads the stored rows are, where each head lists the real halves of its pairs and
    then the imaginary ones, as Hugging Face's q and k do; in our layout pairs are adjacent."""

    @property
    def dtype(self) -> np.dtype:
        return self.pieces[0].dtype

    @property
    def shape(self) -> tuple[int, ...]:
        stored = list(self.pieces[0].shape)
        stored[self.axis] = sum(piece.shape[self.axis] for piece in self.pieces)
        return tuple(reversed(stored)) if self.transposed else tuple(stored)

    def read(self, index: tuple[slice, ...], out: np.ndarray) -> None:
        """Reads the part under `index` into `out`, in the dtype of `out`."""
        stored = out.T if self.transposed else out
        index = tuple(reversed(index)) if self.transposed else index
        before, after = index[: self.axis], index[self.axis + 1 :]
        size = sum(piece.shape[self.axis] for piece in self.pieces)
        start, stop, _ = index[self.axis].indices(size)
        for first, run, step in self._runs(start, stop, size):
            begin = 0
            for piece in self.pieces:
                end = begin + piece.shape[self.axis]
                low, high = max(run.start, begin), min(run.stop, end)
                if low < high:
                    check_whole(piece)
                    at = first - start + (low - run.start) * step
                    to = slice(at, at + (high - low - 1) * step + 1, step)
                    target = stored[(*(slice(None) for _ in before), to)]
                    part = piece[(*before, slice(low - begin, high - begin), *after)]
                    copy_in_bands(part, target)
                begin = end

    def _runs(self, start: int, stop: int, size: int) -> Iterator[tuple[int, range, int]]:
        """What our rows `start` to `stop` are in the files: our first, stored rows, our step."""
        if self.half_split_heads is None:
            yield start, range(start, stop), 1
            return
        head_dim = size // self.half_split_heads
        for head in range(start - start % head_dim, stop, head_dim):
            low, high = max(start, head), min(stop, head + head_dim)
            for half in (0, 1):
                first = low + (low + half) % 2  # head_dim is even, and so is every head's start
                rows = head + half * head_dim // 2 + (first - head) // 2
                yield first, range(rows, rows + (high - first + 1) // 2), 2


@dataclasses.dataclass(frozen=True)
class Source:
    """An opened checkpoint, checked against its own config."""

    path: Path
    format: str
    """"meta", "huggingface", "gguf" or "native"."""
    config: Config
    tensors: Mapping[WeightPath, Stored]
    """Every weight of the model and nothing else, in the order of `names.names_table`."""
    tokenizer: Path | None
    files: tuple[Path, ...]
    """The weight files, for the record of where the checkpoint came from; none of a native one."""
    notes: tuple[str, ...]
    """What a person should know of how it was read: a RoPE factor supplied, buffers skipped."""
    warnings: tuple[str, ...] = ()
    """Where files contradict each other, so that the model may not be read as it was meant."""

    def check_sums(self) -> None:
        """ValueError where torch's files have not the sums that they state; reads every byte.

        Of several processes each checks its share of the files.
        """
        for file in self.files[jax.process_index() :: jax.process_count()]:
            if is_torch_file(file):
                check_sums(file)

    def notes_with(self, tokenizer: Tokenizer | None) -> tuple[str, ...]:
        """The notes, and what is to be said of the checkpoint's tokenizer, once that is loaded."""
        if tokenizer is None:
            return self.notes
        notes = [*self.notes, *getattr(tokenizer, "notes", ())]  # every kind of ours has them
        known, vocab_size = tokenizer.vocab_size, self.config.vocab_size
        if known > vocab_size:
            notes.append(
                f"the tokenizer knows {known:,} tokens and the model {vocab_size:,}: is it "
                "another's?"
            )
        return tuple(notes)


def own_tokenizer(folder: Path, shared: Path | None = None) -> Path | None:
    """The tokenizer's file, once neither it nor what goes with it leads out of its folder.

    `shared` is where it may lie though the checkpoint's folder has a link to it.
    """
    file = find_tokenizer(folder)
    for name, beside in tokenizer_files(file).items() if file else ():
        if isinstance(beside, Path):  # additional_chat_templates/rag.jinja lies one deeper
            check_inside(beside.parents[name.count("/")], beside, shared)
    return file
