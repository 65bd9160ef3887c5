"""A progress bar over batches, for who waits at a terminal."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from llama_jax.generation.batch import Batch


def with_progress(batches: Iterator[Batch], rows: int) -> Iterator[Batch]:
    """The batches, with a progress bar where there are several and a terminal to show it on."""
    from rich.console import Console
    from rich.progress import Progress

    console, bar = Console(stderr=True), None
    with contextlib.ExitStack() as stack:
        for batch in batches:
            if bar is None and console.is_terminal and len(batch.rows) < rows:
                bar = stack.enter_context(Progress(console=console, transient=True))
                task = bar.add_task("completions", total=rows)
            yield batch
            if bar is not None:
                bar.update(task, advance=len(batch.rows))
