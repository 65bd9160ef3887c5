"""Text to ids and back: `load_tokenizer` reads whichever kind a checkpoint has."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from llama_jax.tokenizer.detokenizer import Detokenizer, detokenize
from llama_jax.tokenizer.protocol import Tokenizer
from llama_jax.tokenizer.sentencepiece import SentencePieceTokenizer
from llama_jax.tokenizer.tiktoken import TiktokenTokenizer

__all__ = [
    "Detokenizer",
    "SentencePieceTokenizer",
    "TiktokenTokenizer",
    "Tokenizer",
    "detokenize",
    "find_tokenizer",
    "load_tokenizer",
]

_KINDS = (SentencePieceTokenizer, TiktokenTokenizer)
_NAME = "tokenizer.model"


def find_tokenizer(path: str | PathLike[str]) -> Path | None:
    """The tokenizer's file in the directory `path`, or `path` itself where it is a file.

    A directory with Meta's weights and no tokenizer is looked for one level up, where the LLaMA
    1 and 2 downloads keep the one that all sizes share.
    """
    path = Path(path)
    if path.is_file():
        return path
    return next((file for file in _places(path) if file.is_file()), None)


def load_tokenizer(path: str | PathLike[str]) -> Tokenizer:
    """The tokenizer of a checkpoint's directory, or of its own file.

    What the file holds says which kind it is, never its name: LLaMA 1 and 2 call a SentencePiece
    model `tokenizer.model`, and Llama 3 a tiktoken file.
    """
    path = Path(path)
    file = find_tokenizer(path)
    if file is None:
        raise FileNotFoundError(_not_found(path))
    content = file.read_bytes()
    for kind in _KINDS:
        if kind.recognizes(content):
            try:
                return kind(content)
            except ValueError as error:
                raise ValueError(f"{file} is a broken tokenizer: {error}") from error
    raise ValueError(f"{file} is not a tokenizer: {_what_else(content)}")


def _places(folder: Path) -> list[Path]:
    places = [folder / _NAME]
    if (folder / "params.json").is_file() or any(folder.glob("consolidated.*.pth")):
        places.append(folder.resolve().parent / _NAME)
    return places


def _not_found(path: Path) -> str:
    if not path.is_dir():
        return f"{path} does not exist; pass a checkpoint's directory or a tokenizer's file"
    places = " nor at ".join(map(str, _places(path)))
    return f"there is no tokenizer at {places}; copy the model's {_NAME} there, or pass its path"


def _what_else(content: bytes) -> str:
    if not content:
        return "it is empty; copy or download it again"
    if content.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer to one; fetch the file itself with `git lfs pull`"
    return (
        "it is neither a SentencePiece model (LLaMA 1 and 2) nor tiktoken's lines of base64 and "
        f"rank (Llama 3), but begins with {content[:16]!r}"
    )
