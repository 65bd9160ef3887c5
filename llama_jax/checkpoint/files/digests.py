"""sha256 of files, as people write it: in hexadecimal digits."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from llama_jax.checkpoint.files.regular import open_regular


def sha256_of(file: Path) -> str:
    """The digest of a file's bytes, read a few at a time."""
    with open_regular(file) as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


@contextlib.contextmanager
def digests_beside(files: Sequence[Path]) -> Iterator[Callable[[], list[str]]]:
    """What waits for the files' digests, which another thread computes beside the caller's work."""
    with ThreadPoolExecutor(1) as beside:  # it computes outside Python
        computing = [beside.submit(sha256_of, file) for file in files]
        try:
            yield lambda: [one.result() for one in computing]
        finally:  # where the work failed, nobody waits for more than one file
            for one in computing:
                one.cancel()
