"""Folders of tokens: what lies in one, and whether it is whole.

A folder holds `manifest.json`, the tokenizer's files, and a folder for each split with raw
little-endian tokens (`00000.bin`, ...) and `starts.npy`, where each document starts.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llama_jax.checkpoint.files.json_file import read_object, shown
from llama_jax.checkpoint.files.safe_paths import check_inside
from llama_jax.tokenizer import Tokenizer, find_tokenizer
from llama_jax.tokenizer.folder import is_there
from llama_jax.tokenizer.foreign import in_short, in_words
from llama_jax.train.foreign import foreign_shards
from llama_jax.train.token_split import Packed, TokenSplit

FORMAT, VERSION = "llama_jax tokens", 1
MANIFEST, STARTS = "manifest.json", "starts.npy"
ROW_STARTS, TRAINED = "rows.npy", "trained.bin"
TRAIN, VALIDATION = "train", "validation"
_NAME = re.compile(r"[a-z]{1,32}/[0-9a-z]{1,32}\.(bin|npy)")
"""What a manifest calls a file: a split and a file of it."""
_AGAIN = "copy the folder again, or make it again with `llama-jax tokenize`"


@dataclasses.dataclass(frozen=True)
class TokenFolder:
    """An opened folder of tokens."""

    path: Path
    train: TokenSplit
    validation: TokenSplit | None
    """None where the folder has no validation split."""
    tokenizer: Path | None
    """The tokenizer's file in the folder, which has one unless others wrote the folder."""
    manifest: Mapping[str, Any]
    """What `manifest.json` says; empty for others' files."""


@in_short()
def open_tokens(
    path: str | os.PathLike[str],
    *,
    tokenizer: Tokenizer | None = None,
    vocab_size: int | None = None,
    check_hashes: bool = False,
) -> TokenFolder:
    """Opens a folder that `llama-jax tokenize` wrote, or nanoGPT's or llm.c's `.bin` files.

    Others' files are a folder with one or several for training and for validation ("train" and
    "val" in their names), or one file, all of it for training. `tokenizer` is the model's, and a
    folder made with another vocabulary is refused. `check_hashes` reads every file once and
    compares its sha256 with the manifest's.
    """
    path = Path(path)
    if tokenizer is not None and vocab_size is None:
        vocab_size = tokenizer.vocab_size
    if not is_there(path / MANIFEST):
        splits = {
            name: TokenSplit(name, shards, None, None, vocab_size)
            for name, shards in foreign_shards(path).items()
        }
        return TokenFolder(path, splits[TRAIN], splits.get(VALIDATION), None, {})
    manifest = read_manifest(path)
    if tokenizer is not None:
        _check_vocabulary(path, manifest, tokenizer)
    try:
        splits = {
            name: _open_split(path, name, manifest["dtype"], record, vocab_size, check_hashes)
            for name, record in manifest["splits"].items()
        }
        train = splits[TRAIN]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path / MANIFEST} is damaged ({error!r}); {_AGAIN}") from None
    return TokenFolder(path, train, splits.get(VALIDATION), find_tokenizer(path), manifest)


def read_manifest(path: Path) -> dict[str, Any]:
    """What `manifest.json` says; ValueError where it is not one that this version reads."""
    file = path / MANIFEST
    found = read_object(file)
    if found.get("format") != FORMAT:
        raise ValueError(f"{file} was not written by `llama-jax tokenize`; name another folder")
    if (version := found.get("version")) != VERSION:
        raise ValueError(
            f"{file} has version {shown(version)}, and this llama_jax reads version {VERSION}; "
            "upgrade it, or make the folder again with `llama-jax tokenize`"
        )
    return found


def holds_dialogs(path: str | os.PathLike[str]) -> bool:
    """Whether a folder's rows are dialogs; False where it is others' or cannot be read."""
    try:
        return "packed" in read_manifest(Path(path))["splits"][TRAIN]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def vocabulary_hash(tokenizer: Tokenizer) -> str:
    """A sha256 of what the ids mean: the bytes of each token, and which begin and end a text.

    Two files of one vocabulary, as tokenizer.model and tokenizer.json, have the same.
    """
    controls = {tokenizer.bos_id, tokenizer.eos_id, *getattr(tokenizer, "special", {}).values()}
    found = hashlib.sha256(f"{tokenizer.bos_id} {tokenizer.eos_id} ".encode())
    for id in range(tokenizer.vocab_size):
        text = b"" if id in controls else tokenizer.token_bytes(id, at_start=False)[0]
        found.update(len(text).to_bytes(4, "little") + text)
    return found.hexdigest()


def sha256_of(file: Path) -> str:
    """The sha256 of a file, read a block at a time."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _check_vocabulary(path: Path, manifest: Mapping[str, Any], tokenizer: Tokenizer) -> None:
    made = manifest.get("tokenizer")
    if not isinstance(made, dict) or made.get("vocabulary_sha256") != vocabulary_hash(tokenizer):
        size = made.get("vocab_size") if isinstance(made, dict) else None
        raise ValueError(
            f"{path} was made with another tokenizer ({shown(size)} tokens) than the model's "
            f"({tokenizer.vocab_size}), so ids do not mean the same; make it again: "
            "llama-jax tokenize FILES --tokenizer CHECKPOINT --out FOLDER"
        )


def _count(record: Mapping[str, Any], name: str) -> int:
    """A number of a manifest's; TypeError where it is none."""
    value = record[name]
    if type(value) is not int or not 0 <= value < 2**63:
        raise TypeError(f"{name}={shown(value)}")
    return value


def _file(path: Path, stated: Mapping[str, Any]) -> Path:
    """A file that a manifest names; TypeError where no writing of ours names one so."""
    name = stated["file"]
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise TypeError(f"file={shown(name)}")
    return path / name


def _open_split(
    path: Path,
    name: str,
    dtype: str,
    record: Mapping[str, Any],
    vocab_size: int | None,
    check_hashes: bool,
) -> TokenSplit:
    if dtype not in ("uint16", "uint32"):
        raise ValueError(f"{path / MANIFEST} has dtype={shown(dtype)}; it is uint16 or uint32")
    kind = np.dtype(dtype).newbyteorder("<")
    files = [record["starts"], *record["shards"]]
    for one in files:
        _check_file(path, one, check_hashes)
    shards = tuple(np.memmap(_file(path, shard), kind, "r") for shard in record["shards"])
    count, stated = sum(map(len, shards)), _count(record, "tokens")
    if not shards or count != stated:
        raise ValueError(
            f"{path}'s {name} shards hold {count:,} tokens and {MANIFEST} says {stated:,}; {_AGAIN}"
        )
    starts = _read_starts(file := _file(path, record["starts"]))
    if len(starts) != _count(record, "documents") or starts[0] != 0:
        raise ValueError(f"{file} was changed; {_AGAIN}")
    packed = None
    if "packed" in record:
        packed = _open_packed(path, record["packed"], count, check_hashes)
    text_bytes = None if record.get("text_bytes") is None else _count(record, "text_bytes")
    return TokenSplit(name, shards, starts, text_bytes, vocab_size, packed)


def _open_packed(path: Path, record: Mapping[str, Any], tokens: int, check_hashes: bool) -> Packed:
    for one in (record["row_starts"], record["trained"]):
        _check_file(path, one, check_hashes)
    row_starts = _read_starts(_file(path, record["row_starts"]))
    trained = np.memmap(_file(path, record["trained"]), np.uint8, "r")
    if len(row_starts) < 2 or row_starts[-1] != tokens or len(trained) != tokens:
        raise ValueError(f"{path}'s rows of dialogs are not those of its tokens; {_AGAIN}")
    return Packed(_count(record, "time"), row_starts, trained)


def _read_starts(file: Path) -> np.ndarray:
    # NumPy reads a header as Python reads a program, and fails as that does.
    with in_words(f"{file} is no array of NumPy's (", f"); {_AGAIN}", but=(OSError,)):
        found = np.load(file, mmap_mode="r", allow_pickle=False)
    if getattr(found, "dtype", None) != np.uint64 or found.ndim != 1 or not len(found):
        raise ValueError(f"{file} holds no positions of tokens, one after the other; {_AGAIN}")
    if (found[1:] < found[:-1]).any():
        raise ValueError(f"{file} was changed: its positions do not ascend; {_AGAIN}")
    return found


def _check_file(path: Path, stated: Mapping[str, Any], check_hashes: bool) -> None:
    file, nbytes = _file(path, stated), _count(stated, "bytes")
    if not is_there(file):
        raise ValueError(f"{file} is missing; {_AGAIN}")
    check_inside(path, file)
    if (size := file.stat().st_size) != nbytes:
        raise ValueError(
            f"{file} has {size:,} bytes and {MANIFEST} says {nbytes:,}; it was cut short "
            f"or changed, so {_AGAIN}"
        )
    if check_hashes and sha256_of(file) != stated["sha256"]:
        raise ValueError(f"{file} was changed: its sha256 is not the one in {MANIFEST}; {_AGAIN}")
