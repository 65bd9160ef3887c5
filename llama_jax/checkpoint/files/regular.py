"""A stranger's file, opened once it is known to be one: to open a pipe may be to wait for ever."""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path

from llama_jax.checkpoint.files.messages import FETCH_AGAIN


def open_regular(path: str | Path) -> io.FileIO:
    """The file, to be read. ValueError where a folder, a pipe, a socket or a device lies there."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError(
            f"{path} is a folder, a pipe, a socket or a device, not a file; {FETCH_AGAIN}"
        )
    # Should a pipe take its place meanwhile, this does not wait either.
    # The name as a text: NumPy keeps no other of a file that it maps.
    name = os.fspath(path)
    return io.FileIO(name, opener=lambda name, flags: os.open(name, flags | _DO_NOT_WAIT))


_DO_NOT_WAIT = getattr(os, "O_NONBLOCK", 0)  # of a regular file it changes nothing
