"""Which documents of which files are for training and which for validation, and where they go."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llama_jax.checkpoint.files.destination import writing
from llama_jax.checkpoint.files.json_file import write_json
from llama_jax.tokenizer import Tokenizer, find_tokenizer, load_tokenizer, tokenizer_files
from llama_jax.tokenizer.folder import FILES
from llama_jax.train.corpus import check_files
from llama_jax.train.token_folder import (
    FORMAT,
    MANIFEST,
    TRAIN,
    VALIDATION,
    VERSION,
    read_manifest,
    vocabulary_hash,
)
from llama_jax.train.token_writer import is_written

_KIND = "a folder of llama_jax's tokens"


@dataclasses.dataclass(frozen=True)
class Split:
    """Files of documents, the rule that splits them, and the tokenizer that encodes them.

    Of n = `validation_every` documents the last is for validation: document i, counted from 0 in
    the order of the files, where i % n == n - 1. With n = 0 none is. Where there are files for
    validation, they are the validation split instead.
    """

    files: Mapping[str, Sequence[Path]]
    """By the split that they are for."""
    validation_every: int
    total: int
    """Bytes of all files."""
    tokenizer: Tokenizer
    copies: Mapping[str, Path | bytes]
    """The tokenizer's own file, and what goes with it, by the names that they get."""

    @classmethod
    def of(
        cls,
        files: Sequence[str | os.PathLike[str]],
        tokenizer: str | os.PathLike[str],
        validation_every: int,
        validation_files: Sequence[str | os.PathLike[str]],
    ) -> Split:
        """Checked: every file is there, and of a kind that can be read."""
        if isinstance(validation_every, bool) or validation_every < 0 or validation_every == 1:
            raise ValueError(
                f"validation_every={validation_every} must be at least 2, or 0 for no validation "
                "split"
            )
        given = {TRAIN: [Path(file) for file in files]}
        if validation_files:
            given[VALIDATION], validation_every = [Path(file) for file in validation_files], 0
        total = sum(check_files(group) for group in given.values())
        file = find_tokenizer(tokenizer)
        loaded = load_tokenizer(tokenizer)  # an error where there is no file
        return cls(given, validation_every, total, loaded, tokenizer_files(file) if file else {})

    @property
    def names(self) -> tuple[str, ...]:
        """The splits that there are."""
        return (TRAIN, VALIDATION) if self.validation_every else tuple(self.files)

    @property
    def dtype(self) -> np.dtype:
        """The smallest that holds every token."""
        return np.dtype("<u2" if self.tokenizer.vocab_size <= 2**16 else "<u4")

    def of_document(self, index: int, files: str) -> str:
        """The split of document `index` of the files that are for `files`."""
        every = self.validation_every
        return VALIDATION if every and index % every == every - 1 else files

    def told(
        self, progress: Callable[[int, int], None] | None, files: str
    ) -> Callable[[int], None]:
        """Tells `progress` the bytes read so far, of all that are to be read."""
        names = list(self.files)
        before = [file for name in names[: names.index(files)] for file in self.files[name]]
        done = sum(file.stat().st_size for file in before)
        return lambda read: None if progress is None else progress(done + read, self.total)

    @contextlib.contextmanager
    def writing(self, out: Path, overwrite: bool) -> Iterator[Path]:
        """A folder to fill, which becomes `out` once it is whole; the tokenizer is in it."""
        extras = _extras if overwrite else None
        with writing(out, _KIND, extras, 0, self.copies, what="the tokens") as there:
            yield there

    def check_documents(self, counts: Mapping[str, int], what: str) -> None:
        """ValueError where a split got none."""
        if not sum(counts.values()):
            raise ValueError(f"the files hold no {what}: there is no text in them")
        for name, count in counts.items():
            if count:
                continue
            if not self.validation_every:
                raise ValueError(f"the {name} files hold no {what}: there is no text in them")
            apart = ", or say what stands between documents by separator="
            raise ValueError(
                f"the validation split is empty: of every {self.validation_every} {what}s one is "
                f"for validation, and the files hold {sum(counts.values())}; pass a smaller number "
                "as validation_every= (0 for no validation split), or name files by validation="
                f"{apart if what == 'document' else ''}"
            )

    def write_manifest(self, there: Path, document: str, splits: Mapping[str, Any]) -> None:
        """Writes `manifest.json`; `document` says what was made of one."""
        rule: dict[str, Any] = {"rule": "every", "validation_every": self.validation_every}
        if not self.validation_every:
            names = {name: [file.name for file in files] for name, files in self.files.items()}
            rule = {"rule": "files", "files": names}
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "dtype": self.dtype.name,
            "document": document,
            "split": rule,
            "tokenizer": {
                "file": next(iter(self.copies), None),
                "vocabulary_sha256": vocabulary_hash(self.tokenizer),
                "vocab_size": self.tokenizer.vocab_size,
            },
            "splits": splits,
        }
        write_json(there / MANIFEST, manifest)


def _extras(path: Path) -> list[Path] | None:
    """What lies in a folder of tokens that is not part of one; None for another folder."""
    try:
        tokenizer = read_manifest(path)["tokenizer"]["file"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    known = {MANIFEST, tokenizer, *FILES, TRAIN, VALIDATION}
    found = [entry for entry in path.iterdir() if entry.name not in known]
    for name in (TRAIN, VALIDATION):
        if (path / name).is_dir():
            found += [entry for entry in (path / name).iterdir() if not is_written(entry)]
    return found
