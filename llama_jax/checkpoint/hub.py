"""Repositories of the Hugging Face Hub: the files of a model, in the Hub's own cache.

hf:ORG/NAME             the newest revision of its main branch that lies here, or else is there
hf:ORG/NAME@REVISION    a branch, a tag or a commit
"""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from llama_jax.checkpoint.files.json_file import read_object

HUB = "hf:"
"""What the name of a repository begins with, wherever a checkpoint is taken."""
CONFIGS = ("config.json", "params.json")
"""What says the model's sizes: Hugging Face's file, and Meta's."""
BESIDE = (
    *CONFIGS,
    "generation_config.json",
    *("quantize_config.json", "quant_config.json"),
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
)
"""The files beside the weights that are read, as patterns."""
_TEMPLATES = "additional_chat_templates/*.jinja"
GGUF = ("*.gguf",)
WEIGHTS = (("*.safetensors", "*.safetensors.index.json"), ("consolidated.*.pth",), GGUF)
"""Patterns of the weights' files; of a repository that has several kinds, the first is taken."""
_NAME = r"(?![\w./-]*(?:--|\.\.))\w(?:[\w.-]*\w)?"
"""What the Hub takes as the name of an organisation or a repository; a commit is one as well."""
_WRITTEN = re.compile(
    rf"(?P<repository>{_NAME}/{_NAME})(?<!\.git)(@(?P<revision>[^@\s]+))?", re.ASCII
)
ADDRESS = re.compile(rf"(?:https?://?)?(?:huggingface\.co|hf\.co)/({_NAME}/{_NAME})\b.*", re.ASCII)
"""A repository's page, as it is copied from a browser; a `Path` makes one slash of two."""


@dataclasses.dataclass(frozen=True)
class Repository:
    """A model's repository, at a revision."""

    name: str
    """ORG/NAME."""
    revision: str | None = None
    """None is the main branch."""

    def __str__(self) -> str:
        return HUB + self.name + (f"@{self.revision}" if self.revision else "")


def repository(text: str) -> Repository:
    """The repository that "ORG/NAME", "hf:ORG/NAME" or "hf:ORG/NAME@REVISION" names; ValueError."""
    found = _WRITTEN.fullmatch(text.removeprefix(HUB))
    if found is None:
        page = ADDRESS.fullmatch(text.removeprefix(HUB))
        way_out = (
            HUB + page[1].removesuffix(".git") if page else "hf:ORG/NAME or hf:ORG/NAME@REVISION"
        )
        raise ValueError(f"{text!r} names no repository; write {way_out}")
    return Repository(found["repository"], found["revision"])


def hub_checkpoint(text: str) -> Path:
    """The folder of a repository's model in the Hub's cache, downloaded where it is not there.

    What is there is not compared with the Hub again; `download` does that.
    """
    asked = repository(text)
    return _here(asked) or download(asked)


def download(asked: Repository, only: Sequence[str] = ()) -> Path:
    """Brings the files of a repository's model into the Hub's cache; returns their folder there.

    The revision becomes a commit first, so that all files are of one. A broken connection is taken
    up where it broke, and whole files stay whatever happens. `only` limits the files to names of
    these patterns ("*.safetensors"). A bar on stderr shows how far it is.

    With HF_HUB_OFFLINE=1 what lies here is taken. ValueError says what was missing, refused or
    not reached, and the way out.
    """
    import huggingface_hub
    from huggingface_hub import constants

    with _in_words(asked):
        if constants.HF_HUB_OFFLINE:
            return _here(asked) or _not_here(asked)
        found = huggingface_hub.HfApi().model_info(asked.name, revision=asked.revision)
        names = [each.rfilename for each in found.siblings or ()]
        wanted = needed(names, only)
        _check(asked, names, wanted, only)
        folder = huggingface_hub.snapshot_download(
            asked.name, revision=asked.revision or "main", allow_patterns=wanted
        )
    return Path(folder)


def needed(names: Sequence[str], only: Sequence[str] = ()) -> list[str]:
    """Those of a repository's files that a model is read from; of folders below, chat templates.

    A repository that has its weights twice, as Meta's have, gives them once. A GGUF file is a whole
    model, and needs no other.
    """
    top = [name for name in names if "/" not in name]
    kind = next((kind for kind in WEIGHTS if any(_matches(name, kind) for name in top)), ())
    beside = BESIDE if kind and kind != GGUF else ()
    found = [name for name in top if _matches(name, (*kind, *beside))]
    found += [name for name in names if beside and _matches(name, (_TEMPLATES,))]
    return [name for name in found if not only or _matches(name, only)]


def _check(
    asked: Repository, names: Sequence[str], wanted: Sequence[str], only: Sequence[str]
) -> None:
    """ValueError unless the wanted files are of one model."""
    if not wanted:
        raise ValueError(
            f"{asked} has none of the files that are read (config.json and *.safetensors, "
            "params.json and consolidated.*.pth, or *.gguf)"
            f"{' and match --only' if only else ''}; it holds {_some(names)}"
        )
    if len(models := [name for name in wanted if _matches(name, GGUF)]) > 1:
        raise ValueError(
            f"{asked} holds {len(models)} models as GGUF files: {_some(models)}; bring one, "
            f"`llama-jax download {asked.name} --only {models[0]}`"
        )


def pinned(path: Path) -> str | None:
    """What a folder of the Hub's cache is, or a file in one: "hf:ORG/NAME@COMMIT"; or None."""
    for folder in (path, path.parent):
        *_, repository, snapshots, commit = ("", "", "", *folder.parts)  # Path(".") has no part
        kind, _, name = repository.partition("--")
        if kind == "models" and snapshots == "snapshots":
            return str(Repository(name.replace("--", "/"), commit))
    return None


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _here(asked: Repository) -> Path | None:
    """The repository's folder in the Hub's cache, if the model there is whole."""
    from huggingface_hub import constants

    kept = Path(constants.HF_HUB_CACHE, f"models--{asked.name.replace('/', '--')}")
    commit = asked.revision or "main"
    if (ref := kept / "refs" / commit).is_file():  # documented: of a branch or a tag
        with ref.open("rb") as opened:
            commit = opened.read(99).decode(errors="replace").strip()
    folder = kept / "snapshots" / commit
    return folder if re.fullmatch(_NAME, commit) and folder.is_dir() and is_whole(folder) else None


def is_whole(folder: Path) -> bool:
    """Whether all weights are there that the folder's own index names."""
    names = os.listdir(folder)
    if not any(_matches(name, GGUF) or name in CONFIGS for name in needed(names)):
        return False
    there = set(names)
    for index in folder.glob("*.safetensors.index.json"):
        with contextlib.suppress(ValueError):  # whoever reads it says what is wrong
            said = read_object(index).get("weight_map")
            files = said.values() if isinstance(said, dict) else ()
            if any(isinstance(file, str) and file not in there for file in files):
                return False
    return True


def _not_here(asked: Repository) -> Path:
    raise ValueError(
        f"{asked} is not in the Hub's cache, and HF_HUB_OFFLINE=1 says to download nothing; unset "
        "it, or fetch the repository on a machine that is online"
    )


@contextlib.contextmanager
def _in_words(asked: Repository) -> Iterator[None]:
    """Errors of the Hub as a ValueError that says what to do."""
    from huggingface_hub import constants, errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise ValueError(_gate(asked, error)) from None
    except errors.RepositoryNotFoundError:
        raise ValueError(
            f"{asked}: the Hub has no such repository, or shows it only to those who may read it; "
            "check the name, or log in with `hf auth login` (or HF_TOKEN)"
        ) from None
    except errors.RevisionNotFoundError:
        raise ValueError(
            f"{asked}: the repository has no revision {asked.revision!r}; a branch, a tag or a "
            "commit is one"
        ) from None
    except (json.JSONDecodeError, TypeError, KeyError, AttributeError):  # no answer of a Hub's
        raise ValueError(
            f"{asked}: what answers at {constants.ENDPOINT} is no Hub; a network that wants a "
            "login in a browser answers so, or a proxy, or what HF_ENDPOINT names"
        ) from None
    except (OSError, _of_the_client()) as error:
        raise ValueError(
            f"{asked} could not be downloaded from {constants.ENDPOINT}: {_first_line(error)}. "
            "Whole files are kept, and the same command brings the others; where there is no "
            "network, copy the model's folder to this machine and name that"
        ) from None


def _of_the_client() -> type[Exception]:
    """The kind of exception that the Hub's HTTP client raises where it reaches nobody."""
    from huggingface_hub.errors import HfHubHTTPError

    return HfHubHTTPError.__bases__[0]


def _gate(asked: Repository, error: Exception) -> str:
    """What to do where a repository is for those who accepted its licence."""
    from huggingface_hub import constants, get_token

    page = f"{constants.ENDPOINT}/{asked.name}"
    if get_token() is None:
        return (
            f"{asked} is gated and this machine is not logged in: accept the licence at {page}, "
            "make a token (Settings, Access Tokens), then `hf auth login`, or set HF_TOKEN"
        )
    return (
        f"{asked} is gated and this login may not read it: accept the licence at {page} with the "
        "same account, wait until it is granted, and give the token the right to read gated "
        "repositories"
    )


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:8]) or "no files"
    return f"{shown} and {len(names) - 8} more" if len(names) > 8 else shown


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".")
