"""The README is a promise: each of its snippets is run, in order, in one folder."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT

from llama_jax.checkpoint.named import NAMES

README = (ROOT / "README.md").read_text()
SNIPPETS = re.findall(r"^```(sh|python)\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, shared):
    """Where a reader stands: a clone, and a download of Meta's beside it."""
    folder = tmp_path_factory.mktemp("reader")
    for name in ("tests", "tools", "configs", "llama_jax", "docs", "README.md", "CHANGELOG.md"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "Llama3.2-1B").symlink_to(shared / "models/stories260K-meta")
    return folder


ELSEWHERE = ("pip ", "python -m pytest", "curl ")
"""`.ci/run` runs the first two, `tests/serve/test_http_client.py` the third."""


def commands():
    """The shell commands that are ours."""
    for kind, text in SNIPPETS:
        if kind == "sh":
            for line in re.split(r"\n|&&", text):
                if line.strip() and not line.strip().startswith(ELSEWHERE):
                    yield line.strip()


TALK = "llama-jax chat smollm2"
"""Needs a package of PyPI."""
SERVE = "llama-jax serve"
"""Ends when it is told to: `tests/serve/test_serve_command.py` runs it."""
FEWER = " --set steps=2 --set optimizer.warmup=1 --set run.sample_every=0"
"""For a training of the README, which takes minutes."""


def run(command, folder):
    scripts = str(Path(sys.executable).parent)
    environment = {**os.environ, "PATH": scripts + os.pathsep + os.environ["PATH"]}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_every_snippet_runs(folder):
    if shutil.which("llama-jax", path=str(Path(sys.executable).parent)) is None:
        pytest.skip("llama-jax is not installed; run pip install -e . first")
    for command in commands():
        if command in (TALK, SERVE):
            continue
        fewer = FEWER if command.startswith("llama-jax train configs") else ""
        done = run(shlex.split(command + fewer), folder)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        assert done.stdout, command
    for kind, text in SNIPPETS:
        if kind == "python":
            text = text.replace('load("smollm2")', 'load("checkpoints/llama-3.2-1b")')
            done = run([sys.executable, "-c", text], folder)
            assert done.returncode == 0, f"{text}\n{done.stderr}"


def test_the_first_command_tells_a_story_and_the_second_tests():
    first, second, *_ = [line for line in README.splitlines() if line.startswith("pip install")]
    assert first.endswith('&& llama-jax generate "Once upon a time"')
    assert second.endswith("&& python -m pytest")


def test_what_brings_the_real_model_is_what_its_error_says():
    install = NAMES["smollm2"].__self__.install  # the table's row is the model's method
    assert f"\n{install} && {TALK}\n" in README
