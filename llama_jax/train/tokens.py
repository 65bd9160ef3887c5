"""Text to a folder of tokens: `tokenize` reads documents, encodes them and writes shards."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llama_jax.tokenizer import Tokenizer
from llama_jax.train.corpus import Document, read_documents
from llama_jax.train.split import Split
from llama_jax.train.token_writer import SplitWriter
from llama_jax.validation import check_count

SHARD_TOKENS = 2**28
"""Tokens in one file: 512 MiB of uint16."""
BLOCK_CHARACTERS = 2**22
"""Documents are encoded together until they have so many."""
_DOCUMENT = "bos, where the tokenizer adds one to a text; the text's tokens; eos"


@dataclasses.dataclass(frozen=True)
class Tokenized:
    """What was written."""

    path: Path
    splits: Mapping[str, Mapping[str, Any]]
    """By name what the manifest says of each: "documents", "tokens", "text_bytes", "shards"."""
    left_out: int
    """Documents that are not in it: they have no text, or dialogs too long for a row."""
    seconds: float


def tokenize(
    files: Sequence[str | os.PathLike[str]],
    tokenizer: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    separator: str | None = None,
    key: str = "text",
    validation_every: int = 100,
    validation_files: Sequence[str | os.PathLike[str]] = (),
    shard_tokens: int = SHARD_TOKENS,
    threads: int | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Tokenized:
    """Writes the documents of `files` as tokens to `out`, whole or not at all.

    `Split` says which are for validation. `separator` and `key` are as `read_documents` takes them,
    and `progress` is told the bytes read and the bytes in all. Documents without any text are left
    out, and not counted by the rule of the split.
    """
    start, path = time.monotonic(), Path(os.path.realpath(out))
    check_count("shard_tokens", shard_tokens)
    split = Split.of(files, tokenizer, validation_every, validation_files)
    left_out = 0

    def with_text(documents: Iterable[Document]) -> Iterator[Document]:
        nonlocal left_out
        for document in documents:
            if document.text:
                yield document
            else:
                left_out += 1

    with split.writing(path, overwrite) as there, contextlib.ExitStack() as opened:
        writers = {
            name: opened.enter_context(SplitWriter(there / name, split.dtype, shard_tokens))
            for name in split.names
        }
        for name, group in split.files.items():
            told = split.told(progress, name)
            documents = read_documents(group, separator=separator, key=key, progress=told)
            encoded = _encoded(
                with_text(documents), split.tokenizer, threads or os.cpu_count() or 1
            )
            for index, (document, ids) in enumerate(encoded):
                writer = writers[split.of_document(index, name)]
                writer.add(ids, len(document.text.encode()))
        split.check_documents({name: w.documents for name, w in writers.items()}, "document")
        records = {name: writer.finish() for name, writer in writers.items()}
        split.write_manifest(there, _DOCUMENT, records)
    return Tokenized(path, records, left_out, time.monotonic() - start)


def _encoded(
    documents: Iterable[Document], tokenizer: Tokenizer, threads: int
) -> Iterator[tuple[Document, list[int]]]:
    """Documents and their tokens; a block of them is encoded at once."""
    for block in _blocks(documents):
        texts = [document.text for document in block]
        try:
            found = tokenizer.encode_batch(texts, bos=True, eos=True, threads=threads)
        except ValueError:
            found = [_encode(tokenizer, document) for document in block]  # names the one at fault
        yield from zip(block, found, strict=True)


def _blocks(documents: Iterable[Document]) -> Iterator[list[Document]]:
    block, characters = [], 0
    for document in documents:
        block.append(document)
        characters += len(document.text)
        if characters >= BLOCK_CHARACTERS:
            yield block
            block, characters = [], 0
    if block:
        yield block


def _encode(tokenizer: Tokenizer, document: Document) -> list[int]:
    try:
        return tokenizer.encode(document.text, bos=True, eos=True)
    except ValueError as error:
        raise ValueError(f"{document.place}: {error}") from None
