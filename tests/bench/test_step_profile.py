"""bench/step_profile.py: where the time of a decoding step goes."""

import re
import subprocess
import sys

import jax
import pytest
from helpers import ROOT

import llama_jax
from bench import step_profile
from llama_jax.config import Config


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A checkpoint whose matrices are large enough for products of their own."""
    sizes = {"dim": 512, "n_heads": 8, "n_kv_heads": 8, "head_dim": 64, "hidden_dim": 1024}
    config = Config.named("tiny").replace(**sizes, vocab_size=1024, max_seq_len=256)
    folder = tmp_path_factory.mktemp("profiled") / "model"
    llama_jax.save(llama_jax.init_params(jax.random.key(0), config), folder)
    return folder


@pytest.mark.parametrize("what", [["--steps", "8"], ["--prefill", "64", "--steps", "4"]])
def test_each_part_has_its_milliseconds_and_together_they_are_its_time(large, what):
    command = [sys.executable, ROOT / "bench/step_profile.py", large, *what]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = re.findall(r"^(.+?) +(\d+\.\d+) ms$", done.stdout, re.MULTILINE)
    shown = {name: float(milliseconds) for name, milliseconds in found}
    together, without = shown.pop("together"), shown.pop("without the profiler")
    assert list(shown) == [name for name, _ in step_profile.PARTS]
    assert all(ms > 0 for name, ms in shown.items() if name.startswith("product"))
    assert shown["attention"] > 0
    assert sum(shown.values()) == pytest.approx(together, abs=0.01)
    assert without > 0


def test_time_that_several_share_is_counted_once():
    spans = [(0, 2, "a"), (1, 3, "b"), (1, 2, "b"), (5, 6, "a")]
    assert step_profile.shares(spans) == pytest.approx({"a": 2 + 1 / 3, "b": 1 + 2 / 3})
    assert step_profile.shares([]) == {}


PROGRAM = """
  %gte.1 = f32[1,8]{1,0} get-tuple-element(%arg), index=0
  %dot.1 = f32[1,8] dot(%gte.1, %w), lhs_batch_dims={0}
  ROOT %add.2 = f32[8]{0} add(%dot.1), metadata={op_name="transformer/feed_forward/jit(linear)"}
  %exp.3 = f32[8]{0} exponential(%x), metadata={op_name="jit(_over_spans)/exp"}
  %while.4 = (f32[8]{0}) while(%tuple), condition=%a, body=%b
  %min.5 = s32[] reduce(%y), metadata={op_name="jit(decode)/while/body/reduce"}
"""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["/nowhere"],
            "/nowhere does not exist; pass a checkpoint's directory, hf:ORG/NAME or a name: "
            "stories, smollm2",
        ),
        (["/nowhere", "--batch", "0"], "--batch 0 must be at least 1"),
        (["/nowhere", "--prefill", "0"], "--prefill 0 must be at least 1"),
    ],
)
def test_what_cannot_be_profiled_is_refused_in_a_line(monkeypatch, capsys, arguments, said):
    monkeypatch.setattr(sys, "argv", ["step_profile.py", *arguments])
    with pytest.raises(SystemExit):
        step_profile.main()
    assert capsys.readouterr().err.endswith(f"error: {said}\n")


@pytest.mark.parametrize(
    ("what", "said"),
    [
        (["--steps", "241"], "--steps 241 must be at most 240, before the cache doubles"),
        (["--prefill", "256"], "--prefill 256 must be below max_seq_len=256"),
    ],
)
def test_what_is_more_than_one_program_or_than_the_context_is_refused(
    monkeypatch, capsys, large, what, said
):
    monkeypatch.setattr(sys, "argv", ["step_profile.py", str(large), *what])
    with pytest.raises(SystemExit):
        step_profile.main()
    assert capsys.readouterr().err.endswith(f"error: {said}\n")


def test_an_instruction_is_of_the_part_that_it_or_its_first_user_comes_from():
    found = step_profile.parts(PROGRAM)
    assert found["dot.1"] == found["add.2"] == "products of the feed-forward's weights"
    assert (found["exp.3"], found["min.5"]) == ("attention", "sampling, stops and the loop")
    assert "while.4" not in found, "its time is that of its body"
