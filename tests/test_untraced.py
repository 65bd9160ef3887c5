"""A command's programs are found by a later one, which traces none of them."""

import json
import subprocess
import sys

import pytest
from helpers import ROOT, unkept_environment

PROGRAM = """
import json, sys
import jax
from jax.experimental import serialize_executable
import llama_jax
from llama_jax.generation import loop
from llama_jax.compilation import keep_programs
from llama_jax.kept_programs import MISSED
from llama_jax.serve import seats
from llama_jax.untraced import find_untraced

if "untraced" in sys.argv:
    def forward(*_, **__):
        raise AssertionError("the model was traced")
    seats.forward = loop.forward = forward
if "refused" in sys.argv:
    def refused(*_):
        raise RuntimeError("of another machine")
    serialize_executable.deserialize_and_load = refused
for setting in sys.argv[1:]:
    if "=" in setting:
        jax.config.update(*setting.split("="))
keep_programs()
if "command" in sys.argv:
    find_untraced()
missed = []
note = lambda event, **_: missed.extend([event] * (event == MISSED))
jax.monitoring.register_event_listener(note)
params = llama_jax.load(sys.argv[1])
texts = [llama_jax.generate(params, ["Once upon"], max_new_tokens=8)[0].text]
asked = dict(max_new_tokens=300, stop_ids=[], seed=4)
texts += [delta.text for delta in llama_jax.stream(params, ["A cat", "The"], **asked)]
compiled = len(missed)  # an engine goes on compiling to its end
with llama_jax.Engine(params, rows=2, cache_bytes=1 << 20) as engine:
    greedy, drawn = (
        engine.submit("Once upon", max_new_tokens=8, seed=3, temperature=x) for x in (0.0, 1.0)
    )
    texts += [stream.completions()[0].text for stream in (greedy, drawn)]
print(json.dumps({"texts": texts, "compiled": compiled}))
"""


def run(folder, *arguments):
    command = [sys.executable, "-c", PROGRAM, str(ROOT / "llama_jax/pretrained"), *arguments]
    variables = unkept_environment(LLAMA_JAX_CACHE=str(folder))
    return subprocess.run(command, env=variables, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A folder with the programs of an engine, and what it wrote."""
    folder = tmp_path_factory.mktemp("kept")
    done = run(folder, "command")
    assert not done.returncode, done.stderr
    return folder, json.loads(done.stdout)["texts"]


def test_a_second_process_traces_no_model_and_writes_the_same(kept):
    folder, texts = kept
    done = run(folder, "command", "untraced")
    assert not done.returncode, done.stderr
    assert json.loads(done.stdout)["texts"] == texts


def test_where_a_function_of_ours_may_have_been_replaced_the_one_there_is_run(kept):
    folder, _ = kept
    done = run(folder, "untraced")
    assert "the model was traced" in done.stderr


def test_under_another_setting_of_jax_a_program_is_another(kept):
    folder, _ = kept
    done = run(folder, "command", "untraced", "jax_default_prng_impl=rbg")
    assert done.returncode
    assert "the model was traced" in done.stderr


def test_a_setting_that_does_not_hold_for_our_programs_changes_none(kept):
    folder, texts = kept
    done = run(folder, "command", "untraced", "jax_numpy_rank_promotion=warn")
    assert not done.returncode, done.stderr
    assert json.loads(done.stdout)["texts"] == texts


def test_what_cannot_be_loaded_is_compiled_again(kept):
    folder, texts = kept
    for file in folder.glob("untraced-*-cache"):
        file.write_bytes(file.read_bytes()[:-1])
    done = run(folder, "command")
    assert not done.returncode, done.stderr
    assert json.loads(done.stdout)["texts"] == texts
    done = run(folder, "command", "untraced")  # it was written anew
    assert json.loads(done.stdout)["texts"] == texts


def test_what_xla_does_not_take_back_is_traced_and_found_as_jax_finds_it(kept):
    folder, texts = kept
    done = run(folder, "command", "refused")
    assert json.loads(done.stdout) == {"texts": texts, "compiled": 0}
