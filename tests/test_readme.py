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


def commands():
    """The shell commands that are ours; `.ci/run` runs those that install."""
    for kind, text in SNIPPETS:
        if kind == "sh":
            for line in re.split(r"\n|&&", text):
                if line.strip() and not line.strip().startswith(("pip ", "python -m pytest")):
                    yield line.strip()


FEWER = " --set steps=2 --set optimizer.warmup=1 --set run.sample_every=0"
"""For a training of the README, which takes minutes."""


def run(command, folder):
    scripts = str(Path(sys.executable).parent)
    environment = {
        **os.environ,
        "PATH": scripts + os.pathsep + os.environ["PATH"],
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    }
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_every_snippet_runs(folder):
    if shutil.which("llama-jax", path=str(Path(sys.executable).parent)) is None:
        pytest.skip("llama-jax is not installed; run pip install -e . first")
    for command in commands():
        fewer = FEWER if command.startswith("llama-jax train configs") else ""
        done = run(shlex.split(command + fewer), folder)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        assert done.stdout, command
    for kind, text in SNIPPETS:
        if kind == "python":
            done = run([sys.executable, "-c", text], folder)
            assert done.returncode == 0, f"{text}\n{done.stderr}"


def test_two_commands_do_all_the_set_up():
    installs = [line for line in README.splitlines() if line.startswith("pip install")]
    assert len(installs) == 2
    assert "llama-jax generate" in installs[0]
    assert "python -m pytest" in installs[1]
