"""Documents from files of text (.txt, .md, .jsonl, .parquet), each with the place that it is at."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from llama_jax.free_memory import free_memory
from llama_jax.train.parquet import open_parquet, parquet_texts

SUFFIXES = (".txt", ".md", ".jsonl", ".parquet")
BLOCK = 2**20
_BOM = b"\xef\xbb\xbf"  # some editors begin a UTF-8 file with it; it is no text
_LINE_END = re.compile(rb"\r?\n")
_MEMORY_PER_BYTE = 100
"""Bytes of memory that encoding takes for a byte of one document; measured: 46 by SentencePiece, 14
by tiktoken, 88 by tokenizers."""


class Document(NamedTuple):
    """A text and its place: "book.txt", or "stories.jsonl, line 7"."""

    text: str
    place: str


def check_files(files: Sequence[Path]) -> int:
    """The files' bytes in all; ValueError or OSError where one cannot be read as documents."""
    if not files:
        raise ValueError("there is no file to read; name at least one")
    total = 0
    for file in files:
        if file.is_dir():
            raise ValueError(f"{file} is a directory; name the files in it, as in {file}/*.txt")
        file.stat()  # a file that is not there is no matter of its suffix
        if file.suffix not in SUFFIXES:
            raise ValueError(
                f"{file} ends in {file.suffix or 'no suffix'!r}; text is read from "
                f"{', '.join(SUFFIXES)}, so rename it to the one that it is"
            )
        with file.open("rb") as opened:
            total += os.fstat(opened.fileno()).st_size
        if file.suffix == ".parquet":
            open_parquet(file)
    return total


def read_documents(
    files: Sequence[Path],
    *,
    separator: str | None = None,
    key: str = "text",
    progress: Callable[[int], None] | None = None,
) -> Iterator[Document]:
    """The documents of all files, in order, one in memory at a time.

    A .txt or .md file is one document, or several with `separator` between them. A line end beside
    a separator belongs to it, and with a separator so does the file's last line end. A .jsonl file
    has one object a line and a .parquet file one row, with the text under `key`. `progress` is told
    the bytes read so far.
    """
    if separator == "":
        raise ValueError(f"separator={separator!r} separates nothing; leave it out, or pass a text")
    done = 0
    for file in files:
        for document, read in _documents_of(file, separator, key):
            yield document
            if progress is not None:
                progress(done + read)
        done += file.stat().st_size
        if progress is not None:
            progress(done)


def _documents_of(file: Path, separator: str | None, key: str) -> Iterator[tuple[Document, int]]:
    """Each document of a file, and how many bytes of the file have been read by then."""
    if file.suffix == ".jsonl":
        return _lines(file, key)
    if file.suffix == ".parquet":
        return ((Document(text, place), read) for text, place, read in parquet_texts(file, key))
    if separator is None:
        return _whole(file)
    return _parts(file, separator.encode())


def _whole(file: Path) -> Iterator[tuple[Document, int]]:
    size = file.stat().st_size
    check_fits(size, str(file), free_memory())
    yield Document(decode(file.read_bytes().removeprefix(_BOM), file, 1), str(file)), size


def _parts(file: Path, separator: bytes) -> Iterator[tuple[Document, int]]:
    """What lies between separators, read a block at a time."""
    memory, rest, line, searched = free_memory(), bytearray(), 1, 0
    ended = b""  # the separator that the next part comes after
    with file.open("rb") as opened:
        while block := opened.read(BLOCK):
            first = opened.tell() == len(block)
            rest += block.removeprefix(_BOM) if first else block
            begin = 0
            while (end := rest.find(separator, max(begin, searched))) >= 0:
                part = bytes(rest[begin:end])
                yield _part(file, line, part, ended), opened.tell()
                line += part.count(b"\n") + separator.count(b"\n")
                begin, ended = end + len(separator), separator
            del rest[:begin]
            searched = max(0, len(rest) - len(separator) + 1)
            check_fits(len(rest), f"{file}, line {line}", memory)
        yield _part(file, line, bytes(rest), ended), opened.tell()


def _part(file: Path, line: int, part: bytes, ended: bytes) -> Document:
    """One part, which begins at a line, without the line ends beside its separators."""
    if ended and (end := _LINE_END.match(part)):
        part, line = part[end.end() :], line + 1
    last = b"\r\n" if part.endswith(b"\r\n") else b"\n"
    return Document(decode(part.removesuffix(last), file, line), f"{file}, line {line}")


def _lines(file: Path, key: str) -> Iterator[tuple[Document, int]]:
    for number, value, read in read_objects(file):
        place = f"{file}, line {number}"
        if key not in value:
            known = ", ".join(map(repr, list(value)[:8])) or "none"
            raise ValueError(f"{place} has no {key!r}; its keys are {known}, so name the text's")
        if not isinstance(value[key], str):
            raise ValueError(
                f"{place} has a {type(value[key]).__name__} under {key!r}; it must be a text"
            )
        yield Document(value[key], place), read


def read_objects(file: Path) -> Iterator[tuple[int, dict[str, Any], int]]:
    """Each JSON object of a .jsonl file: its line's number, itself, and the bytes read so far."""
    with file.open("rb") as opened:
        memory, read, number = free_memory(), 0, 0
        while line := opened.readline(memory // _MEMORY_PER_BYTE + 1):
            number += 1
            place = f"{file}, line {number}"
            check_fits(len(line), place, memory)
            read += len(line)
            text = decode(line.removeprefix(_BOM) if number == 1 else line, file, number).strip()
            if not text:
                continue
            try:
                value = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{place} is not JSON ({error}); mend or remove it") from None
            if not isinstance(value, dict):
                raise ValueError(f"{place} holds a {type(value).__name__}; it must be an object")
            yield number, value, read


def decode(data: bytes, file: Path, line: int) -> str:
    """The text of `data`, which begins at a line of a file; ValueError where it is not UTF-8."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line += data.count(b"\n", 0, error.start)
        raise ValueError(
            f"{file}, line {line}: byte 0x{data[error.start]:02X} is not UTF-8; save the file as "
            "UTF-8, or remove the line"
        ) from None


def check_fits(size: int, place: str, memory: int) -> None:
    """ValueError where a document of so many bytes is too long for the memory that is free."""
    if size * _MEMORY_PER_BYTE > memory:
        raise ValueError(
            f"{place}: one document of {size / 1e6:,.0f} MB or more is too long to encode, which "
            f"would take {size * _MEMORY_PER_BYTE / 1e9:,.1f} GB of memory where "
            f"{memory / 1e9:,.1f} GB are free; tell documents apart by a separator, or cut the file"
        )
