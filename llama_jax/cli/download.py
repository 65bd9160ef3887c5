"""`llama-jax download`."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from llama_jax.cli.console import UsageError, telling_of, typed
from llama_jax.cli.description import print_rows


def download(
    repository: Annotated[
        str,
        typer.Argument(
            metavar="REPOSITORY",
            help="A repository of the Hugging Face Hub: ORG/NAME or hf:ORG/NAME",
        ),
    ],
    revision: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Branch, tag or commit; default: the main branch"),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            help="Of the files that are needed, those of such a name: '*.json'; may be repeated",
        ),
    ] = None,
) -> None:
    """Bring a model from the Hugging Face Hub.

    It comes into the Hub's cache on this machine: only the files that are read, and none that is
    there already. Afterwards hf:ORG/NAME is that model wherever a checkpoint is taken. HF_HOME is
    where the cache lies, HF_TOKEN or `hf auth login` lets you in, HF_HUB_OFFLINE=1 asks nobody.
    """
    from llama_jax.checkpoint import hub
    from llama_jax.checkpoint.files.messages import in_units
    from llama_jax.checkpoint.named import NAMES

    if repository in NAMES:  # it comes another way, which an error says where it is not here
        here = {"here already": str(NAMES[repository]())}
        print_rows({**here, "use it as": f"llama-jax generate {repository} PROMPT"})
        return
    with typed():
        asked = hub.repository(repository)
    if revision is not None and asked.revision is not None:
        raise UsageError(f"{repository} names a revision, and --revision another; leave one out")
    if revision is not None:
        asked = dataclasses.replace(asked, revision=revision)
    folder = hub.download(asked, only or ())
    files = [file for file in folder.iterdir() if file.is_file()]
    size = sum(file.stat().st_size for file in files)
    use = f"llama-jax generate {asked} PROMPT"
    pinned = hub.pinned(folder) or str(asked)
    with telling_of(folder):
        print_rows(
            {
                "files": f"{len(files)}, {in_units(size)}",
                "folder": str(folder),
                "revision": pinned.partition("@")[2],
                "use it as": f"{use}, or {pinned} for just this revision",
            }
        )
