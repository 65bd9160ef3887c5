"""The folder of a tokenizer's file: what may lie beside it, and how a stranger's files are read."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

MODEL_CONFIG = "huggingface_config.json"
"""What a copy calls the model's config.json, which states ids too: a native checkpoint has a
config.json of its own."""
TEMPLATES = "additional_chat_templates"
"""The folder of the chat templates that have a name, as transformers writes them."""
_NAMES = (
    *("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("generation_config.json", "chat_template.jinja", "chat_template.json", MODEL_CONFIG),
)
FILES = (*_NAMES, TEMPLATES)
"""What may lie beside a tokenizer's file, by the names that a copy has."""
READ = (*FILES, "tokenizer.json", "config.json", "params.json")
"""What is read in a tokenizer's folder."""
_MAX_BYTES = 16 * 2**20
MAX_TOKENIZER_BYTES = 64 * 2**20
"""The size limit of a tokenizer's own file. Llama 3.3's tokenizer.json has 17 MB."""
_MAX_TEMPLATES = 64
_AGAIN = "copy or download it again"
_MAX_BRACKETS = 1_000_000
"""Objects and lists of a JSON file: one of seven bytes takes 200 of memory. 600,000 merges, each a
pair, are the most that a tokenizer has."""


def given_path(path: str | os.PathLike[str]) -> Path:
    """A path as a person gives it, where it begins with ~ in the user's home; TypeError."""
    return Path(os.path.expanduser(path_text(path)))


def path_text(path: str | os.PathLike[str]) -> str:
    """A path as a text; TypeError for what is none."""
    text = os.fspath(path) if isinstance(path, os.PathLike) else path
    if isinstance(text, str):
        return text
    way_out = "decode it: os.fsdecode(path)" if isinstance(text, bytes) else "pass one of the two"
    raise TypeError(f"{path!r:.60} is no path, which is a str or a pathlib.Path; {way_out}")


def has_metas_weights(folder: Path) -> bool:
    """Whether a folder is one of Meta's downloads."""
    return is_there(folder / "params.json") or any(folder.glob("consolidated.*.pth"))


def is_there(file: Path) -> bool:
    """Whether a regular file is there, itself or behind a link; False where nothing is.

    ValueError names what is there instead: to pass over it would be to read another model.
    """
    try:
        if stat.S_ISREG(file.stat().st_mode):
            return True
    except (FileNotFoundError, NotADirectoryError):
        if not file.is_symlink():
            return False
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
    if file.is_symlink() and not file.exists():
        raise ValueError(f"{file} is a link to a file that is not there; {_AGAIN}")
    raise ValueError(f"{file} is a folder, a pipe, a socket or a device, not a file; {_AGAIN}")


def tokenizer_above(folder: Path, name: str) -> Path:
    """The tokenizer in the folder above a model's, by a path that says whose it is.

    `7B/../tokenizer.model` is the file that `7B` and `13B` share, as 7B's tokenizer: what lies in
    `7B` counts before what lies beside the file.
    """
    return folder / ".." / name


def beside(file: Path, name: str) -> Path:
    """Where the file `name` of a tokenizer's folder is, or would be.

    It is the model's own folder where that has it, and the tokenizer's file lies above.
    """
    model = file.parent.parent
    if file.parent.name == ".." and has_metas_weights(model) and os.path.lexists(model / name):
        return model / name
    return file.with_name(name)


def templates_beside(file: Path) -> dict[str, Path]:
    """The chat templates that have a file of their own, by name: {"rag": .../rag.jinja}."""
    folder = beside(file, TEMPLATES)
    if os.path.lexists(folder) and not folder.is_dir():
        raise ValueError(f"{folder} is no folder of chat templates; {_AGAIN}")
    found = sorted(folder.glob("*.jinja"))
    if len(found) > _MAX_TEMPLATES:
        raise ValueError(
            f"{folder} holds {len(found)} templates; at most {_MAX_TEMPLATES} are read"
        )
    return {one.stem: one for one in found}


def tokenizer_files(file: Path) -> dict[str, Path]:
    """A tokenizer's file and all that it needs of its folder, by the names a copy gives them."""
    found = {name: beside(file, name) for name in _NAMES if is_there(beside(file, name))}
    found |= {f"{TEMPLATES}/{one.name}": one for one in templates_beside(file).values()}
    config = beside(file, "config.json")
    if MODEL_CONFIG not in found and _is_models(config):
        found[MODEL_CONFIG] = config
    return {file.name: file, **found}


def tokenizer_state(file: Path) -> tuple[Any, ...]:
    """What changes when a tokenizer's file, or what may lie beside it, does."""
    found = []
    names = (*FILES, "config.json", "params.json")
    several = (file, *(beside(file, name) for name in names), *templates_beside(file).values())
    for one in several:
        try:
            stat = one.stat()
        except OSError:
            continue
        found.append((str(one), stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns))
    return tuple(found)


def read_bounded(file: Path, at_most: int = _MAX_BYTES) -> bytes:
    """A stranger's regular file of at most so many bytes; ValueError otherwise."""
    is_there(file)  # or an error says what else is: to open a pipe may be to wait for ever
    with file.open("rb") as opened:
        found = opened.read(at_most + 1)
    if len(found) > at_most:
        raise ValueError(f"{file} has more than {at_most:,} bytes; it is not a tokenizer's")
    return found


def check_brackets(text: bytes, name: str = "it") -> None:
    """ValueError where a JSON file has more objects and lists than any tokenizer's."""
    count = text.count(b"{") + text.count(b"[")
    if count > _MAX_BRACKETS:
        raise ValueError(
            f"{name} has {count:,} objects and lists, and at most {_MAX_BRACKETS:,} are read; "
            "download it again"
        )


def read_object(file: Path) -> dict[str, Any]:
    """The object in a JSON file of a stranger's; an empty one where there is no file."""
    if not is_there(file):
        return {}
    text = read_bounded(file)
    check_brackets(text, str(file))
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not JSON ({error}); copy or download it again") from error
    if not isinstance(value, dict):
        raise ValueError(f"{file} is no JSON object; copy or download it again")
    return value


def _is_models(config: Path) -> bool:
    try:
        return not read_object(config).keys().isdisjoint(("model_type", "architectures"))
    except ValueError:
        return False
