"""Streams that are full or closed end a command in at most one line."""

import os
import subprocess
import sys

import pytest
from helpers import ROOT

RUNS = {
    "a full disk, of click's own text": ("--version", ">/dev/full", 1, 1),
    "a full disk, of a command": ("inspect llama_jax/pretrained", ">/dev/full", 1, 1),
    "a closed output": ("inspect llama_jax/pretrained", ">&-", 0, 0),
    "a closed input": ("generate llama_jax/pretrained --file -", "<&-", 2, 1),
    "all closed": ("--version", "<&- >&- 2>&-", 0, 0),
}


@pytest.mark.parametrize(("command", "streams", "code", "lines"), RUNS.values(), ids=RUNS)
def test_a_stream_that_fails_ends_in_a_line(command, streams, code, lines):
    line = f"{sys.executable} -m llama_jax {command} {streams}"
    clean = {**os.environ, "JAX_PLATFORMS": "cpu", "LLAMA_JAX_CACHE": "off"}
    done = subprocess.run(
        ["sh", "-c", line], cwd=ROOT, env=clean, capture_output=True, text=True, timeout=120
    )
    said = done.stderr.splitlines()
    assert (done.returncode, len(said)) == (code, lines), done.stderr
    assert all(one.startswith("error: ") for one in said)
