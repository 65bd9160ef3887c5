"""A stranger's file, opened once it is known to be one: to open a pipe may be to wait for ever."""

from __future__ import annotations

import io
import os
from pathlib import Path

from llama_jax.tokenizer.folder import is_there


def open_regular(path: str | Path) -> io.FileIO:
    """The file, to be read. ValueError where a folder, a pipe, a socket or a device lies there."""
    is_there(Path(path))  # or an error says what else is; of what is absent, opening tells
    # Should a pipe take its place meanwhile, this does not wait either.
    # The name as a text: NumPy keeps no other of a file that it maps.
    name = os.fspath(path)
    return io.FileIO(name, opener=lambda name, flags: os.open(name, flags | _DO_NOT_WAIT))


_DO_NOT_WAIT = getattr(os, "O_NONBLOCK", 0)  # of a regular file it changes nothing
