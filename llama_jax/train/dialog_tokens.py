"""Dialogs to a folder of tokens: `tokenize_dialogs` encodes them, packs them and writes rows."""

from __future__ import annotations

import array
import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llama_jax.train.dialogs import example_of, read_dialogs
from llama_jax.train.packing import best_fit
from llama_jax.train.split import Split
from llama_jax.train.token_folder import ROW_STARTS, TRAINED
from llama_jax.train.token_writer import SplitWriter, file_record
from llama_jax.train.tokens import SHARD_TOKENS, Tokenized
from llama_jax.validation import check_count

_DOCUMENT = "a dialog in the model's own format, up to the last token that is trained"


def tokenize_dialogs(
    files: Sequence[str | os.PathLike[str]],
    tokenizer: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    context: int,
    drop_long: bool = False,
    validation_every: int = 100,
    validation_files: Sequence[str | os.PathLike[str]] = (),
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Tokenized:
    """Writes the dialogs of .jsonl files, packed into rows of `context` tokens, to `out`.

    `dialogs.py` says what a line may hold and what is trained. `Split` says which dialogs are for
    validation. A dialog longer than `context` is an error, or is left out with `drop_long`.
    """
    start, path = time.monotonic(), Path(os.path.realpath(out))
    check_count("context", context)
    split = Split.of(files, tokenizer, validation_every, validation_files)
    for file in (file for group in split.files.values() for file in group):
        if file.suffix != ".jsonl":
            raise ValueError(f"{file} is not .jsonl; dialogs are read from JSON lines")
    left_out, records = 0, {}
    with split.writing(path, overwrite) as there, contextlib.ExitStack() as opened:
        examples = {name: _Examples(there, split.dtype, opened) for name in split.names}
        for name, group in split.files.items():
            told = split.told(progress, name)
            index = 0
            for dialog, read in read_dialogs(group):
                example = example_of(dialog, split.tokenizer)
                told(read)
                if len(example.ids) <= context:
                    examples[split.of_document(index, name)].add(example.ids, example.trained)
                    index += 1
                elif drop_long:
                    left_out += 1
                else:
                    raise ValueError(
                        f"{dialog.place}: the dialog has {len(example.ids):,} tokens, and a row "
                        f"{context:,}; choose a longer context, or leave such dialogs out "
                        "(--drop-long)"
                    )
        counts = {name: len(some.lengths) for name, some in examples.items()}
        split.check_documents(counts, "dialog")
        for name, some in examples.items():
            records[name] = some.pack(there / name, context)
        split.write_manifest(there, _DOCUMENT, records)
    return Tokenized(path, records, left_out, time.monotonic() - start)


class _Examples:
    """The examples of one split as they came, in files without a name; their lengths in memory."""

    def __init__(self, folder: Path, dtype: np.dtype, opened: contextlib.ExitStack) -> None:
        self._dtype = dtype
        self._ids, self._trained = (
            opened.enter_context(tempfile.TemporaryFile(dir=folder))  # noqa: SIM115
            for _ in range(2)
        )
        self.lengths = array.array("Q")

    def add(self, ids: Sequence[int], trained: np.ndarray) -> None:
        """Appends one example."""
        self._ids.write(np.array(ids, self._dtype).tobytes())
        self._trained.write(trained.astype(np.uint8).tobytes())
        self.lengths.append(len(ids))

    def pack(self, folder: Path, size: int) -> dict[str, Any]:
        """Writes the split, row after row of the best fit; what the manifest says of it."""
        lengths = np.array(self.lengths, np.uint64)
        begins = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        ids, trained = _mapped(self._ids, self._dtype), _mapped(self._trained, np.dtype(np.uint8))
        row_starts, count = [0], 0
        with (
            SplitWriter(folder, self._dtype, SHARD_TOKENS) as writer,
            (folder / TRAINED).open("xb") as flags,
        ):
            for row in best_fit(lengths, size):
                for index in row:
                    here = slice(begins[index], begins[index + 1])
                    writer.add(ids[here], 0)
                    flags.write(trained[here].tobytes())
                    count += int(trained[here].sum())
                row_starts.append(writer.tokens)
            record = writer.finish()
        np.save(folder / ROW_STARTS, np.array(row_starts, "<u8"))
        packed = {
            "time": size,
            "rows": len(row_starts) - 1,
            "trained_tokens": count,
            "row_starts": file_record(folder / ROW_STARTS),
            "trained": file_record(folder / TRAINED),
        }
        return {**record, "text_bytes": None, "packed": packed}


def _mapped(file: Any, dtype: np.dtype) -> np.ndarray:
    file.flush()
    return np.memmap(file, dtype, "r")
