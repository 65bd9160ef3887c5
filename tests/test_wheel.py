"""The wheel, installed away from the clone, tells a story; no text that it learnt from is in it."""

import importlib.util
import os
import subprocess
import sys
import zipfile

import pytest
from helpers import ROOT, SHARED

pytestmark = pytest.mark.slow
PROMPT = "Once upon a time"
IN_PYTHON = f"""
import llama_jax
(done,) = llama_jax.generate(llama_jax.load(), [{PROMPT!r}], max_new_tokens=8, temperature=0)
print(llama_jax.__file__, done.text, sep="\\n")
"""


def pip(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "pip", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    isolated = importlib.util.find_spec("hatchling") is None
    done = pip(
        "wheel", "--no-deps", *[] if isolated else ["--no-build-isolation"], "-w", folder, ROOT
    )
    if done.returncode and isolated:
        pytest.skip("hatchling, which builds the wheel, can neither be found nor fetched here")
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("llama_jax-*.whl")
    return built


@pytest.fixture(scope="module")
def elsewhere(wheel, tmp_path_factory):
    """A folder in which the wheel is installed; what it needs is this environment's."""
    folder = tmp_path_factory.mktemp("site")
    done = pip("install", "--no-deps", "--no-index", "--target", folder, wheel)
    assert done.returncode == 0, done.stderr
    return folder


def run(command, folder, cwd):
    environment = {**os.environ, "PYTHONPATH": str(folder), "XLA_FLAGS": ""}
    return subprocess.run(
        [*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


def test_the_command_tells_a_whole_story(elsewhere, tmp_path):
    done = run([elsewhere / "bin/llama-jax", "generate", PROMPT], elsewhere, tmp_path)
    assert done.returncode == 0, done.stderr
    assert str(elsewhere / "llama_jax/pretrained") in done.stderr
    assert done.stdout.startswith(PROMPT)
    assert len(done.stdout.split()) > 60
    assert done.stdout.rstrip()[-1] in '.!?"'


def test_load_finds_the_model(elsewhere, tmp_path):
    done = run([sys.executable, "-c", IN_PYTHON], elsewhere, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{elsewhere}/llama_jax/__init__.py\n, there was")


def test_it_holds_the_package_and_the_model_whole_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    configs = {f"llama_jax/configs/models/{f.name}" for f in (ROOT / "configs/models").iterdir()}
    ours = [f for f in (ROOT / "llama_jax").rglob("*") if f.is_file() and f.suffix != ".pyc"]
    expected = configs | {file.relative_to(ROOT).as_posix() for file in ours}
    assert {name for name in names if ".dist-info/" not in name} == expected
    assert wheel.stat().st_size < 4_000_000


def test_no_story_of_the_texts_comes_along(wheel, shared):
    """Of every tenth story, the 60 letters after its first 100; the card's samples are drawn."""
    with zipfile.ZipFile(wheel) as archive:
        held = b"".join(archive.read(name) for name in archive.namelist())
    for file in ("tinystories_2M.txt", "tinystories_more.txt"):
        stories = (SHARED / "corpora" / file).read_text().split("<|endoftext|>")
        parts = [story.strip()[100:160].encode() for story in stories[::10]]
        assert [part for part in parts if len(part) > 50 and part in held] == []
