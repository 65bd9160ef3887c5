"""A server's programs are found by a later process, which traces none of them."""

import json
import subprocess
import sys

import pytest
from helpers import ROOT, unkept_environment

PROGRAM = """
import json, sys
import jax
import llama_jax
from llama_jax.generation import loop
from llama_jax.compilation import keep_programs
from llama_jax.serve import seats

if "untraced" in sys.argv:
    def forward(*_, **__):
        raise AssertionError("the model was traced")
    seats.forward = loop.forward = forward
if "other" in sys.argv:
    jax.config.update("jax_numpy_rank_promotion", "warn")
keep_programs()
params = llama_jax.load(sys.argv[1])
with llama_jax.Engine(params, rows=2, cache_bytes=1 << 20) as engine:
    greedy, drawn = (
        engine.submit("Once upon", max_new_tokens=8, seed=3, temperature=x) for x in (0.0, 1.0)
    )
    print(json.dumps([stream.completions()[0].text for stream in (greedy, drawn)]))
"""


def run(folder, *arguments):
    command = [sys.executable, "-c", PROGRAM, str(ROOT / "llama_jax/pretrained"), *arguments]
    variables = unkept_environment(LLAMA_JAX_CACHE=str(folder))
    return subprocess.run(command, env=variables, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A folder with the programs of an engine, and what it wrote."""
    folder = tmp_path_factory.mktemp("kept")
    done = run(folder)
    assert not done.returncode, done.stderr
    return folder, json.loads(done.stdout)


def test_a_second_process_traces_no_model_and_writes_the_same(kept):
    folder, texts = kept
    done = run(folder, "untraced")
    assert not done.returncode, done.stderr
    assert json.loads(done.stdout) == texts


def test_under_another_setting_of_jax_a_program_is_another(kept):
    folder, _ = kept
    done = run(folder, "untraced", "other")
    assert "the model was traced" in done.stderr


def test_what_cannot_be_loaded_is_compiled_again(kept):
    folder, texts = kept
    for file in folder.glob("untraced-*-cache"):
        file.write_bytes(file.read_bytes()[:-1])
    done = run(folder)
    assert not done.returncode, done.stderr
    assert json.loads(done.stdout) == texts
    done = run(folder, "untraced")  # it was written anew
    assert json.loads(done.stdout) == texts
