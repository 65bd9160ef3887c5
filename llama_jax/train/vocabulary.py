"""A tokenizer of one's own: SentencePiece, trained as LLaMA's was."""

from __future__ import annotations

import dataclasses
import io
import itertools
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from llama_jax.tokenizer.protocol import check_text
from llama_jax.train.corpus import Document, check_files, read_documents
from llama_jax.validation import check_count

NORMALIZATIONS = ("identity", "nmt_nfkc")
SAMPLE_BYTES = 2**30
"""Text beyond it is sampled."""
LLAMA: dict[str, Any] = {
    "model_type": "bpe",
    "character_coverage": 0.99995,
    "split_digits": True,
    "byte_fallback": True,
    "allow_whitespace_only_pieces": True,
    "remove_extra_whitespaces": False,
    "unk_id": 0,
    "bos_id": 1,
    "eos_id": 2,
    "pad_id": -1,
    "unk_surface": " \u2047 ",
}
"""What LLaMA's tokenizer.model states, where SentencePiece's own default is another."""
_SMALLEST = 3 + 256  # unk, bos, eos and the bytes
_LINE_BYTES = 4192  # as LLaMA's; SentencePiece leaves out what is longer
_LINE_CHARACTERS = _LINE_BYTES // 4
_FIXED: dict[str, Any] = {
    "num_threads": 16,  # it is stored in the file, which must not depend on the machine
    "input_sentence_size": 0,
    "shuffle_input_sentence": False,
    "max_sentence_length": _LINE_BYTES,
    "minloglevel": 2,
}


@dataclasses.dataclass(frozen=True)
class TrainedTokenizer:
    """What `train_tokenizer` wrote."""

    path: Path
    vocab_size: int
    sampled: float
    """The share of the lines that it was trained on."""
    seconds: float


def train_tokenizer(
    files: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    vocab_size: int,
    separator: str | None = None,
    key: str = "text",
    normalization: str = "identity",
    sample_bytes: int = SAMPLE_BYTES,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> TrainedTokenizer:
    """Writes a SentencePiece model of `vocab_size` pieces to the file `out`.

    BPE with a byte for each character it does not know, every digit a piece, and whatever else
    LLaMA's own states. Of files with more than `sample_bytes` it reads every n-th line. The same
    files give the same model, byte for byte.
    """
    start, out = time.monotonic(), Path(out)
    check_count("sample_bytes", sample_bytes)
    check_count("vocab_size", vocab_size)
    if vocab_size <= _SMALLEST:
        raise ValueError(
            f"vocab_size={vocab_size} leaves no room beside unk, bos, eos and the 256 bytes; it "
            f"must be above {_SMALLEST}"
        )
    if normalization not in NORMALIZATIONS:
        raise ValueError(
            f"normalization={normalization!r} must be one of {', '.join(map(repr, NORMALIZATIONS))}"
        )
    if out.is_dir() or (out.exists() and not overwrite):
        what = "a directory; name a file" if out.is_dir() else "there already"
        raise FileExistsError(f"{out} is {what}; remove it, or pass overwrite=True")
    sources = [Path(file) for file in files]
    total = check_files(sources)

    def told(read: int) -> None:
        if progress is not None:
            progress(read, total)

    every = -(-total // sample_bytes) or 1
    documents = read_documents(sources, separator=separator, key=key, progress=told)
    lines = (line for document in documents for line in _lines(document))
    model = model_file(itertools.islice(lines, 0, None, every), vocab_size, normalization)
    _write(out, model)
    return TrainedTokenizer(out, vocab_size, 1 / every, time.monotonic() - start)


def _lines(document: Document) -> Iterator[str]:
    """A document's lines, the long ones cut: at their last space where they have one."""
    try:
        check_text(document.text)
    except ValueError as error:
        raise ValueError(f"{document.place}: {error}") from None
    for rest in document.text.split("\n"):
        while len(rest) > _LINE_CHARACTERS:
            end = rest.rfind(" ", 1, _LINE_CHARACTERS)
            end = _LINE_CHARACTERS if end < 0 else end
            yield rest[:end]
            rest = rest[end:]
        if rest:
            yield rest


def model_file(lines: Iterable[str], vocab_size: int, normalization: str) -> bytes:
    """The model's file; what went wrong with a line, or in SentencePiece, is raised in words."""
    import sentencepiece

    written, failed = io.BytesIO(), []

    def given() -> Iterator[str]:
        try:
            yield from lines
        except BaseException as error:  # SentencePiece would make it a RuntimeError of its own
            failed.append(error)
            raise

    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=given(),
            model_writer=written,
            vocab_size=vocab_size,
            normalization_rule_name=normalization,
            **LLAMA,
            **_FIXED,
        )
    except RuntimeError as error:
        if failed:
            raise failed[0] from None
        raise ValueError(_in_words(str(error), vocab_size)) from None
    return written.getvalue()


def _in_words(said: str, vocab_size: int) -> str:
    if found := re.search(r"value <= (\d+)", said):
        return (
            f"vocab_size={vocab_size} is more than the text has pieces for, {found[1]}; choose "
            "that or fewer, or give more text"
        )
    if found := re.search(r"required_chars\. \d+ vs (\d+)", said):
        return (
            f"vocab_size={vocab_size} has no room for the text's characters, which with the bytes "
            f"take {found[1]}; choose more"
        )
    if "sentences_.empty()" in said:
        return "the files hold no text to train a tokenizer on"
    return f"SentencePiece cannot train on the files: {said}"


def _write(out: Path, model: bytes) -> None:
    """The file appears under its name once it is whole."""
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        with partial.open("xb") as file:
            file.write(model)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
