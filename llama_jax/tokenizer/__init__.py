"""Text to ids and back: `load_tokenizer` reads whichever kind a checkpoint has."""

from __future__ import annotations

import functools
from os import PathLike
from pathlib import Path
from typing import Any

from llama_jax.tokenizer.beside import read_stated, stated_in
from llama_jax.tokenizer.chat_template import read_chat_template, template_in
from llama_jax.tokenizer.detokenizer import Detokenizer, detokenize
from llama_jax.tokenizer.folder import (
    MAX_TOKENIZER_BYTES,
    given_path,
    has_metas_weights,
    is_there,
    read_bounded,
    tokenizer_above,
    tokenizer_state,
)
from llama_jax.tokenizer.folder import tokenizer_files as files_beside
from llama_jax.tokenizer.foreign import MAX_ERROR, in_words
from llama_jax.tokenizer.gguf import gguf_tokenizer
from llama_jax.tokenizer.gguf_header import gguf_in, is_gguf
from llama_jax.tokenizer.huggingface import HuggingFaceTokenizer
from llama_jax.tokenizer.protocol import Message, Tokenizer, Tools
from llama_jax.tokenizer.sentencepiece import SentencePieceTokenizer
from llama_jax.tokenizer.tiktoken import TiktokenTokenizer

__all__ = [
    "Detokenizer",
    "HuggingFaceTokenizer",
    "Message",
    "SentencePieceTokenizer",
    "TiktokenTokenizer",
    "Tokenizer",
    "Tools",
    "detokenize",
    "find_tokenizer",
    "load_tokenizer",
    "shared_tokenizer",
    "tokenizer_files",
]

_KINDS = (SentencePieceTokenizer, TiktokenTokenizer, HuggingFaceTokenizer)
_NAME, _HF_NAME = "tokenizer.model", "tokenizer.json"


def find_tokenizer(path: str | PathLike[str]) -> Path | None:
    """The tokenizer's file in the directory `path`, or `path` itself where it is a file.

    Of Hugging Face's two, tokenizer.json is the one that says all; beside Meta's weights,
    tokenizer.model.

    Where a directory with Meta's weights has none of its own, the one above it counts: the LLaMA 1
    and 2 downloads keep one there that all sizes share. Its path leads through the directory, whose
    chat template and settings are the tokenizer's.
    """
    path = given_path(path)
    if path.is_file():
        return path
    return next((file for file in _places(path) if is_there(file)), None)


def tokenizer_files(file: Path) -> dict[str, Path | bytes]:
    """A tokenizer's file, first, and all that it needs of its folder, by the names of a copy.

    A file with a name of its own, mine.model say, gets the one by which a folder's is found. What
    lies nowhere as a file, since a GGUF file states it, is there as bytes.
    """
    if is_gguf(file):
        return dict(gguf_tokenizer(file).contents)
    own, *rest = files_beside(file).items()
    name = own[0]
    if name not in (_NAME, _HF_NAME) and (
        kind := _kind_of(read_bounded(file, MAX_TOKENIZER_BYTES))
    ):
        name = _HF_NAME if kind is HuggingFaceTokenizer else _NAME
    return {name: file, **{beside: path for beside, path in rest if beside != name}}


def load_tokenizer(path: str | PathLike[str]) -> Tokenizer:
    """The tokenizer of a checkpoint's directory, or of its own file.

    What the file holds says which kind it is, never its name: LLaMA 1 and 2 call a SentencePiece
    model `tokenizer.model`, and Llama 3 a tiktoken file.
    """
    path = given_path(path)
    file = find_tokenizer(path)
    if file is None:
        raise FileNotFoundError(_not_found(path))
    if is_gguf(file):
        return _open_gguf(file)
    content = read_bounded(file, MAX_TOKENIZER_BYTES)
    kind = _kind_of(content)
    if kind is None:
        raise ValueError(f"{file} is not a tokenizer: {_what_else(content)}")
    return _open(kind, content, file)


def shared_tokenizer(file: Path) -> Tokenizer:
    """`load_tokenizer`, once for all who ask while the file and its folder stay as they are."""
    return _loaded(file, tokenizer_state(file))


@functools.lru_cache(maxsize=4)
def _loaded(file: Path, state: tuple[Any, ...]) -> Tokenizer:
    return load_tokenizer(file)


def _open(kind: Any, content: bytes, file: Path) -> Tokenizer:
    with in_words("", limit=MAX_ERROR, but=(OSError,)):  # which name the file themselves
        template = read_chat_template(file)
        spelled = template.source + (template.tool_source or "") if template else ""
        stated = read_stated(file, spelled)
    with in_words(f"{file} is a broken tokenizer: ", limit=MAX_ERROR, but=(OSError,)):
        tokenizer = kind(content, stated, template)
        tokenizer.notes += tokenizer.template_notes()
    return tokenizer


def _open_gguf(file: Path) -> Tokenizer:
    """The tokenizer of a GGUF file, from the files that a conversion would write."""
    made = gguf_tokenizer(file)
    with in_words(f"the tokenizer in {file} is broken: ", limit=MAX_ERROR, but=(OSError,)):
        objects, content = made.objects(), made.contents[made.name]
        template = template_in(objects["tokenizer_config.json"], str(file))
        tokenizer = _kind_of(content)(content, stated_in(objects), template)
    tokenizer.notes = (*made.notes, *tokenizer.notes, *tokenizer.template_notes())
    return tokenizer


def _kind_of(content: bytes) -> Any:
    """The kind of tokenizer that a file holds; None where it holds none."""
    return next((kind for kind in _KINDS if kind.recognizes(content)), None)


def _places(folder: Path) -> list[Path]:
    """Where a folder's tokenizer may lie, the first the best."""
    if has_metas_weights(folder):
        return [folder / _NAME, folder / _HF_NAME, tokenizer_above(folder, _NAME)]
    found = [folder / _HF_NAME, folder / _NAME]
    gguf = [] if any(is_there(file) for file in found) else [gguf_in(folder)]
    return [*found, *(file for file in gguf if file is not None)]


def _not_found(path: Path) -> str:
    if path.exists() and not path.is_dir():
        return f"{path} is a pipe, a socket or a device, and no tokenizer's file; copy that there"
    if not path.is_dir():
        return f"{path} does not exist; pass a checkpoint's directory or a tokenizer's file"
    places = " nor at ".join(str(place.parent.resolve() / place.name) for place in _places(path))
    return f"there is no tokenizer at {places}; copy the model's {_NAME} there, or pass its path"


def _what_else(content: bytes) -> str:
    if not content:
        return "it is empty; copy or download it again"
    if content.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer to one; fetch the file itself with `git lfs pull`"
    return (
        "it is neither a SentencePiece model (LLaMA 1 and 2) nor tiktoken's lines of base64 and "
        "rank (Llama 3) nor Hugging Face's tokenizer.json, but begins with "
        f"{content[:16]!r}"
    )
