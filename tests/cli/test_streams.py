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


WRITING = {
    "convert": "convert tests/golden/meta/llama3 {}",
    "export": "export tests/golden/hf/llama2 {} --format meta",
    "train-tokenizer": "train-tokenizer README.md --vocab-size 400 --out {}",
}


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
@pytest.mark.parametrize("command", WRITING.values(), ids=WRITING)
def test_what_was_written_is_said_to_be_though_the_output_is_full(tmp_path, command):
    out = tmp_path / "out"
    line = f"{sys.executable} -m llama_jax {command.format(out)} >/dev/full"
    clean = {**os.environ, "JAX_PLATFORMS": "cpu", "LLAMA_JAX_CACHE": "off"}
    done = subprocess.run(
        ["sh", "-c", line], cwd=ROOT, env=clean, capture_output=True, text=True, timeout=120
    )
    said = f"error: {out} is written, but the output is not: "
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(said), done.stderr
    assert out.exists()


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
